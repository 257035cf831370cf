"""Names of results. Oracles: recorded names of all committed experiments, and experiments that are equal or are not."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pforce import catalog
from pforce.base.errors import ConfigError
from pforce.config import Experiment, sampler_from_dict, to_dict, with_fields
from pforce.orchestration.reproduction import sweep_of
from pforce.records import identity, legacy
from pforce.records.identity import (
    DEFAULTS,
    TABLE,
    Fields,
    IdentityError,
    canonical,
    canonical_sampler,
    coerced,
    read_defaults,
    time_key,
)
from pforce.records.parts import CellParts, Inputs, cell_parts
from pforce.sampling import SAMPLERS, DualLoop, Euler, Guidance, Sampler
from pforce.timesteps import LTG
from pforce.timesteps import SAMPLERS as TIMESTEP_SAMPLERS
from pforce.training.config import OptimizerConfig
from pforce_experiments.openmoji32 import openmoji32_micro
from pforce_experiments.paper import SCALES, TABLES

INPUTS = Inputs("d" * 64, 4000, 447, "openmoji", "e" * 64, "as it is")
NAMES = Path(__file__).with_name("names.json")
SAMPLERS_BEFORE = Path(__file__).with_name("samplers.json")
"""Samplers as commit 3743fe2 wrote and named them."""


def cell(experiment: Experiment, **inputs: object) -> CellParts:
    return cell_parts(experiment, replace(INPUTS, **inputs))


def changed(**fields: object) -> CellParts:
    return cell(with_fields(openmoji32_micro(), {name.replace("__", "."): value for name, value in fields.items()}))


BASE = cell(openmoji32_micro())


def committed() -> dict[str, Experiment]:
    """All experiments of the catalogue, and of the paper's tables at all scales."""
    found = {name: catalog.experiment(name) for name in catalog.experiments()}
    for table in TABLES:
        for scale in SCALES.values():
            for each in sweep_of(table, scale).cells():
                found[f"{table.name}-{scale.name}: {each.label}"] = each.experiment
    return found


def test_no_name_of_a_committed_experiment_changes():
    """A change here forgets finished results of every user. New experiments are added by `names_of_all`."""
    recorded, now = json.loads(NAMES.read_text()), names_of_all()
    assert {name: now.get(name) for name in recorded} == recorded
    assert set(now) == set(recorded), "add the new ones: python -m tests.records.test_identity"


def names_of_all() -> dict[str, list[str]]:
    return {
        name: [parts.training.digest[:12], parts.digest[:12]]
        for name, parts in ((name, cell(each)) for name, each in sorted(committed().items()))
    }


def test_equal_experiments_have_equal_names():
    """2 and 2.0, 0.0 and −0.0, σ = 0.5 and 0.6 under the published truncation, what stands at its default."""
    micro = openmoji32_micro()
    for one, other in (
        (LTG(2, 1, 0.2), LTG(2.0, 1.0, 0.2)),
        (LTG(0.0, 1.0, 0.2), LTG(-0.0, 1.0, 0.2)),
        (LTG(0.7, 1.0, 0.5), LTG(0.7, 1.0, 0.6)),
    ):
        assert cell(replace(micro, timesteps=one)).digest == cell(replace(micro, timesteps=other)).digest
    given = replace(micro, sampler=DualLoop(24, quantile=0.4, inner_steps=4))
    assert cell(given).digest == cell(replace(micro, sampler=DualLoop(24))).digest
    unused = replace(micro, sampler=Euler(guidance=Guidance(1, (0.1, 0.5))))
    assert cell(unused).digest == BASE.digest, "an interval without guidance changes nothing"
    exact = [replace(LTG(0.7, 1.0, sigma), truncation="exact") for sigma in (0.5, 0.6)]
    assert len({cell(replace(micro, timesteps=each)).digest for each in exact}) == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "x"), ("data.name", "shards"), ("training.compile", True), ("training.log_every", 3),
        ("training.checkpoint_every", 7), ("training.accumulation", 2), ("evaluation.batch", 8),
        ("evaluation.detector_weights", "/x"), ("model.attention", "flash"), ("evaluation.held_out_images", 900),
        ("evaluation.label_images", 900), ("training.precision", "float32"),
    ],
)  # fmt: skip
def test_what_changes_no_result_changes_no_name(path, value):
    """447 held-out images are 447, whether 900 or 1,000 are asked for; `auto` is what it is resolved to."""
    changes = {path: value, **({"data.path": "/x"} if path == "data.name" else {})}
    assert cell(with_fields(openmoji32_micro(), changes)).digest == BASE.digest


OF_TRAINING = [
    ("seed", 1), ("timesteps.m", 0.1), ("timesteps.truncation", "exact"), ("flow.difficulty_weight", 0.1),
    ("training.ema_decay", 0.9), ("model.depth", 3), ("data.streams", 8), ("data.flip", True),
    ("optimizer.learning_rate", 0.1), ("training.precision", "bfloat16"),
]  # fmt: skip
OF_EVALUATION = [
    ("evaluation.images", 10), ("sampler.num_function_evaluations", 9), ("evaluation.seed", 3),
    ("evaluation.held_out_images", 100), ("evaluation.label_images", 100), ("evaluation.reference_images", 100),
    ("evaluation.labels", "classes"), ("evaluation.reference", "train"), ("evaluation.extrapolate", True),
    ("evaluation.difficulty_timesteps", [0.2]), ("sampler.guidance.scale", 2.0), ("training.images", 6400),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), [*OF_TRAINING, *OF_EVALUATION])
def test_what_determines_a_result_is_in_its_name(path, value):
    """A budget is no part of a training: its weights are a function of the images seen."""
    found = cell(with_fields(openmoji32_micro(), {path: value}))
    assert found.digest != BASE.digest
    assert (found.training.digest == BASE.training.digest) == ((path, value) in OF_EVALUATION)


def test_float32_and_bfloat16_part_where_auto_is_either():
    assert cell(openmoji32_micro(), auto="bfloat16").training.digest != BASE.training.digest
    assert cell(openmoji32_micro(), auto="bfloat16").digest == changed(training__precision="bfloat16").digest


def test_what_is_read_is_in_the_name_of_what_reads_it():
    """Another detector trains nothing again; other data do."""
    detector = cell(openmoji32_micro(), detector_sha256="f" * 64)
    assert detector.training.digest == BASE.training.digest
    ours, theirs = (dict(each.request.held_out_parts("w")) for each in (BASE, detector))
    assert [part.digest for part in ours.values()] == [part.digest for part in theirs.values()]
    assert {p.digest for p in BASE.request.image_parts("w").values()}.isdisjoint(
        p.digest for p in detector.request.image_parts("w").values()
    )
    assert cell(openmoji32_micro(), data="0" * 64).training.digest != BASE.training.digest


def test_three_settings_name_three_things():
    """Held-out count, label rule and reference each change their own parts only."""

    def parts(found: CellParts) -> tuple[set[str], str, str]:
        held_out = {part.digest for part in found.request.held_out_parts("w").values()}
        return held_out, found.request.drawing("w").digest, found.request.reference

    base = parts(BASE)
    for number, name in enumerate(("held_out_images", "label_images", "reference_images")):
        found = parts(changed(**{f"evaluation__{name}": 100}))
        assert [one != other for one, other in zip(found, base, strict=True)] == [number == n for n in range(3)]


def test_a_drawing_does_not_know_how_many_images_are_asked_for():
    few, many = changed(evaluation__images=500), changed(evaluation__images=2000)
    assert few.request.drawing("w").digest == many.request.drawing("w").digest
    assert few.request.image_parts("w")["frechet"].digest != many.request.image_parts("w")["frechet"].digest


OF_BEFORE = ("quantile", "threshold", "pooling", "inner_steps", "context_ratio", "start_after", "shift")


@pytest.mark.parametrize("recorded", json.loads(SAMPLERS_BEFORE.read_text()))
def test_no_name_of_a_sampler_changes(recorded):
    """Random samplers as files of before have them, with null where nothing was given: their names of then, and the
    canonical forms that were hashed at commit 0641df2."""
    plain = {**dict.fromkeys(OF_BEFORE), **recorded["given"]}
    sampler = sampler_from_dict(plain)
    assert json.dumps(canonical_sampler(sampler)) == json.dumps(recorded["identity"])
    assert json.loads(json.dumps(legacy._sampler(plain))) == recorded["canonical"]
    assert sampler_from_dict(json.loads(json.dumps(to_dict(sampler)))) == sampler


def test_every_field_is_declared():
    """A field that is not in the table would be in no name, and nobody would notice."""
    for cls, fields in TABLE.items():
        assert set(fields.keys) == {each.name for each in dataclasses.fields(cls)}, cls
    for kind, chosen in (("timesteps", TIMESTEP_SAMPLERS), ("sampler", SAMPLERS)):
        for name, cls in chosen.items():
            if cls.__module__.startswith("pforce."):  # a sampler of one's own is named by its fields
                assert TABLE[cls].component == f"{kind}.{name}"


def test_a_default_is_not_changed_without_a_version():
    """The committed defaults are today's: where one changes, raise the component's version and say so there."""
    recorded = read_defaults(DEFAULTS)
    for cls, fields in TABLE.items():
        hints = identity._hints(cls)
        now = {
            fields.keys[each.name]: coerced(each.default, hints[each.name], each.name)
            for each in dataclasses.fields(cls)
            if each.default is not dataclasses.MISSING and fields.keys[each.name] is not None
        }
        if issubclass(cls, Sampler):
            del now["nfe"]  # it is in every name
            now = {"guidance": {"scale": 1.0}, **{key: value for key, value in now.items() if value is not None}}
        assert recorded[fields.component] == now


def test_an_attribute_may_be_renamed_and_a_field_added(monkeypatch):
    """Oracle: the names before. The key stays; a new field has its default in the file."""

    @dataclass(frozen=True)
    class Renamed:
        step_size: float = 1e-4
        weight_decay: float = 0.0
        betas: tuple[float, float] = (0.9, 0.999)
        warmup_steps: int = 1000
        gradient_norm: float = 1.0
        nesterov: bool = False

    keys = {"step_size": "learning_rate", **{k: k for k in ("weight_decay", "betas", "warmup_steps", "gradient_norm")}}
    monkeypatch.setitem(TABLE, Renamed, Fields("optimizer", {**keys, "nesterov": "nesterov"}))
    defaults = {**read_defaults(DEFAULTS)}
    defaults["optimizer"] = {**defaults["optimizer"], "nesterov": False}
    monkeypatch.setattr(identity, "_defaults", lambda: defaults)
    for rate, decay in ((1e-4, 0.0), (2e-3, 0.1)):
        assert canonical(Renamed(rate, decay)) == canonical(OptimizerConfig(rate, decay))
    assert canonical(Renamed(nesterov=True)) == {"nesterov": True}


@pytest.mark.parametrize("damage", ["cut", "digit", "other", "missing"])
def test_damaged_defaults_are_refused(tmp_path, damage):
    """With another default an experiment would get the name, and the numbers, of another one."""
    path, text = tmp_path / "defaults.json", DEFAULTS.read_text()
    changes = {"cut": text[: len(text) // 2], "digit": text.replace("0.7", "0.2"), "other": "[]"}
    if damage in changes:
        path.write_text(changes[damage])
    with pytest.raises(IdentityError, match=r"Install\s+pforce again"):
        read_defaults(path)


def test_names_of_metrics_never_round_their_timestep():
    assert time_key(0.2) == "0.20"
    assert time_key(3 * 0.05) == "0.15"
    with pytest.raises(ConfigError, match="at most two decimals"):
        time_key(0.125)


if __name__ == "__main__":
    NAMES.write_text(json.dumps(names_of_all(), indent=0) + "\n")
