"""A sampler that a user defines in one place, in a module of `experiments`: everything else takes it from there.

Oracles: Euler's images on the grid that the sampler makes, a name that is written out here, messages.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

from pforce import cli
from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError, FieldError
from pforce.commands import train
from pforce.config import check_path, from_dict, to_dict, with_fields
from pforce.executors.executor import Workforce
from pforce.models import ModelConfig
from pforce.orchestration.axes import Axis
from pforce.orchestration.sampler_report import make_subject
from pforce.orchestration.sampler_search import SearchSpace, check_space
from pforce.orchestration.sampler_sweep import SamplerSweep, run
from pforce.orchestration.sweep import Sweep
from pforce.records.identity import canonical_sampler
from pforce.records.parts import Inputs, cell_parts
from pforce.results.pareto import front_figure
from pforce.sampling import SAMPLERS, DualLoop, Euler, Guidance, Range, count_flops, generate, register, timesteps_for
from pforce.storage import Storage
from pforce.tracking import Tracker, default_uri
from pforce.trial.source import load_source
from pforce_experiments.openmoji32 import openmoji32_micro
from pforce_experiments.sweeps import sampler_thresholds
from tests.sampling.test_adaptive import awake
from tests.support.studies import searching

pytestmark = pytest.mark.process

SOURCE = '''
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from pforce.sampling import Range, Sampler, euler, register
from pforce.base.errors import require


@register
@dataclass(frozen=True)
class Finer(Sampler):
    """Euler's method on a grid that is finer than the one given."""

    name: ClassVar[str] = "finer"
    needs_difficulty_head: ClassVar[bool] = False
    searched: ClassVar[Mapping[str, Range]] = {"parts": Range(2, 4), "seed": Range(0, 8, 2)}
    cost_settings: ClassVar[tuple[str, ...]] = ("parts",)
    parts: int = 2
    """Parts of a step."""
    drift: float | None = 0.0
    """None is no drift at all."""
    seed: int = 0
    """Seed of nothing."""

    def check(self):
        require(self.parts >= 1, "parts", self.parts, "≥ 1")

    def cost(self, timesteps):
        return self.parts * (len(timesteps) - 1)

    def solve(self, model, x0, timesteps, *, y, generator=None, callback=None):
        shares = torch.arange(self.parts) / self.parts
        starts = timesteps[:-1, None] + shares * timesteps.diff()[:, None]
        finer = torch.cat([starts.flatten(), timesteps[-1:]])
        return euler(model, x0, finer, y=y, guidance=self.guidance, callback=callback)
'''
INPUTS = Inputs("d" * 64, 4000, 447, "openmoji", "e" * 64, "as it is")


@pytest.fixture
def finer(module_of_experiments) -> ModuleType:
    """The module as Python has it once something of this name was asked for."""
    module_of_experiments("finer_euler", SOURCE)
    assert "finer" not in SAMPLERS
    from_dict(
        {**to_dict(openmoji32_micro()), "sampler": {"name": "finer"}}
    )  # as a worker reads it, and knows no better
    return sys.modules["pforce_experiments.finer_euler"]


def test_it_is_configured(finer):
    experiment = with_fields(openmoji32_micro(), {"sampler": "finer", "sampler.parts": 3})
    assert experiment.sampler == finer.Finer(24, parts=3)
    assert from_dict(json.loads(json.dumps(to_dict(experiment)))) == experiment
    nothing = with_fields(experiment, {"sampler.drift": None})
    assert nothing.sampler.drift is None
    assert from_dict(json.loads(json.dumps(to_dict(nothing)))) == nothing
    with pytest.raises(ConfigError, match=r"sampler\.parts = 0: must be ≥ 1"):
        with_fields(experiment, {"sampler.parts": 0})
    with pytest.raises(
        ConfigError, match=r"sampler\.parts = 2: does not apply to euler: it is a setting of finer; euler has n"
    ):
        with_fields(openmoji32_micro(), {"sampler.parts": 2})
    with pytest.raises(FieldError, match="num_function_evaluations = 2: must be ≥ 3 for finer with parts = 3"):
        timesteps_for("finer", 2, parts=3)
    check_path(openmoji32_micro(), "sampler.parts")
    axes = (Axis("sampler", ("finer", "dual_loop")), Axis("sampler.shift", (3.0,)))
    assert [cell.experiment.sampler.name for cell in Sweep("s", openmoji32_micro(), axes).cells()] == [
        "finer", "dual_loop",
    ]  # fmt: skip
    values = Sweep("s", openmoji32_micro(), (Axis("sampler", (Euler(8), finer.Finer(8))),))
    assert [cell.label for cell in values.cells()] == ["sampler=euler seed=0", "sampler=finer seed=0"]


def test_its_name_has_every_setting(finer):
    """Written out, as nobody keeps its defaults. What no other cell has is in the cell's name."""
    assert canonical_sampler(finer.Finer(25)) == {
        "name": "finer", "nfe": 24, "guidance": {"scale": 1.0}, "parts": 2, "drift": 0.0, "seed": 0,
        "spacing": "linear",
    }  # fmt: skip
    shifted = finer.Finer(24, Guidance(2, (0.1, 0.5)), "shifted", 2, parts=3, drift=None)
    assert canonical_sampler(shifted) == {
        "name": "finer", "nfe": 24, "guidance": {"scale": 2.0, "interval": [0.1, 0.5]}, "parts": 3, "seed": 0,
        "spacing": "shifted", "shift": 2.0,
    }  # fmt: skip
    cells = [
        cell_parts(with_fields(openmoji32_micro(), {"sampler": sampler}), INPUTS)
        for sampler in (Euler(), finer.Finer(), finer.Finer(parts=3), finer.Finer(seed=1))
    ]
    assert len({cell.digest for cell in cells}) == 4
    assert len({cell.training.digest for cell in cells}) == 1


def test_it_draws(finer):
    """On evenly spaced steps it is Euler with as many evaluations, but for rounding."""
    model, labels = awake(), torch.arange(4) % 3
    ours, theirs = (
        list(generate(model, sampler, labels, seed=1, batch=2, device="cpu"))
        for sampler in (finer.Finer(8, Guidance(1.5)), Euler(8, Guidance(1.5)))
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.images, other.images)
        assert one[1:] == other[1:]
    assert count_flops(model.config, finer.Finer(8)) == count_flops(model.config, Euler(8))


def test_it_is_an_option_of_every_command(finer, trained, tmp_path, monkeypatch, capsys):
    """Its settings are called the same everywhere."""
    monkeypatch.setenv("COLUMNS", "80")  # one column of options
    asked = []
    monkeypatch.setattr(train, "run_sweep", lambda sweep, options, **k: asked.append(sweep.base.sampler) or DONE)
    train.train(["openmoji32_micro", "--sampler", "finer", "--sampler.parts", "3", "--sampler.seed", "2"])
    assert asked == [finer.Finer(24, parts=3, seed=2)]

    def called(*words: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["pforce", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert ended.value.code == (2 if "error" in told.err else 0), told.err
        return " ".join((told.out + told.err).replace("│", " ").split())

    helped = called("train", "openmoji32_micro", "--sampler", "finer", "--help")
    assert "--sampler.parts INT Parts of a step. (default: 2)" in helped
    helped = called("sample", "--help")
    assert "--sampler.parts INT finer: parts of a step. (default: 2)" in helped
    assert "--sampler.seed INT finer: seed of nothing. (default: 0)" in helped
    drawing = ("sample", str(trained), "--count", "4", "--storage", "runs", "--sampler", "finer", "--nfe", "6")
    called(*drawing, "--sampler.parts", "3", "--sampler.seed", "5")
    cost = json.loads(Path("runs/samples/cost.json").read_text())
    assert cost["sampler"] | {"parts": 3, "seed": 5, "drift": 0.0, "name": "finer"} == cost["sampler"]
    refused = called("sample", str(trained), "--sampler.parts", "3")
    assert "sampler.parts = 3: does not apply to euler: it is a setting of finer; euler has none" in refused
    assert "sampler = 'fine': must be one of euler, " in called("sample", str(trained), "--sampler", "fine")
    assert "drift FLOAT finer: none is no drift at all." in called("evaluate", "--help")
    monkeypatch.setattr(sys, "argv", ["sampler_thresholds.py", "--help"])
    with pytest.raises(SystemExit):
        sampler_thresholds.main()
    helped = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--sampler.parts INT INT finer: parts of a step. (default: 2 to 4 in steps of 1)" in helped
    assert "--sampler.seed INT INT finer: seed of nothing. (default: 0 to 8 in steps of 2)" in helped


def test_it_is_searched(finer, tmp_path):
    """Suggestions lie on the grid of its ranges; a range of a user's takes the place of its own."""
    space = SearchSpace(("euler", "finer"), (4, 12), {"parts": (2, 3)})
    search, seen = searching(tmp_path, space), []
    for _ in range(40):
        sampler = search.ask()
        assert sampler is not None
        search.tell(sampler, 1.0, sampler.num_function_evaluations)
        seen += [sampler] if sampler.name == "finer" else []
    assert {sampler.parts for sampler in seen} == {2, 3}
    assert {sampler.seed for sampler in seen} <= {0, 2, 4, 6, 8}
    assert len({sampler.seed for sampler in seen}) > 1
    assert space.identity == {"samplers": ["euler", "finer"], "nfe": [4, 12], "parts": [2, 3], "seed": [0, 8]}
    check_space(space, Guidance(), ModelConfig(difficulty_head=False))
    for ranges, message in (
        ({"parts": (0, 3)}, "parts = 0: must be ≥ 1"),
        ({"parts": (2.0, 3.0)}, r"parts = \(2.0, 3.0\): must be two integers"),
        ({"parts": (2, 5)}, r"nfe = \(4, 12\): must be enough for all that is searched"),
        ({"parts": (3, 2)}, r"parts = \(3, 2\): must be \(low, high\)"),
        ({"quantile": (0.1, 0.2)}, "does not apply to euler, finer, of which parts, seed is searched"),
    ):
        with pytest.raises(FieldError, match=message):
            SearchSpace(("euler", "finer"), (4, 12), ranges)


def test_settings_of_one_name_with_other_ranges_are_searched_apart(monkeypatch, tmp_path):
    """Optuna knows a parameter by its name, which can have one range only."""

    @dataclass(frozen=True)
    class Slow(DualLoop):
        name: ClassVar[str] = "slow"
        searched: ClassVar[Mapping[str, Range]] = {"inner_steps": Range(5, 6)}

    monkeypatch.setitem(SAMPLERS, "slow", Slow)
    space = SearchSpace(("dual_loop", "slow"), (8, 24))
    assert space.parameters("dual_loop") == {"quantile": "quantile", "inner_steps": "dual_loop.inner_steps"}
    assert space.parameters("slow") == {"inner_steps": "slow.inner_steps"}
    together = SearchSpace(("dual_loop", "random_order"))
    assert together.parameters("dual_loop") == {"quantile": "quantile", "inner_steps": "inner_steps"}
    search = searching(tmp_path, space)
    for _ in range(30):
        sampler = search.ask()
        assert sampler is not None
        assert sampler.inner_steps in ((5, 6) if sampler.name == "slow" else (2, 3, 4, 5, 6))
        search.tell(sampler, 1.0, sampler.num_function_evaluations)


def test_a_sweep_measures_it(finer, trained, tmp_path):
    source, storage = load_source(trained), Storage.open(tmp_path)
    subject = make_subject(source, storage, data=None, images=8, reference=16, seed=0)
    sweep = SamplerSweep("own", subject, SearchSpace(("euler", "finer"), (4, 6), {"parts": (2, 3)}), 5, confirm=False)
    tracker = Tracker(default_uri(tmp_path), artifacts=tmp_path / "artifacts")
    first = run(sweep, tracker, storage, make_console(width=200), Workforce())
    assert first.code == DONE
    assert {"euler", "finer"} == set(first.frame["sampler"])
    assert first.frame.set_index("sampler").loc["finer", "parts"].notna().all()
    again = run(sweep, tracker, storage, make_console(width=200), Workforce())
    assert again.measured == 0
    assert again.frame.equals(first.frame)
    drawn = front_figure(first.frame, "fd/openmoji")
    assert "finer" in {text.get_text() for text in drawn.axes[0].get_legend().get_texts()}


def test_what_cannot_be_registered_is_refused(finer):
    with pytest.raises(TypeError, match=r"Other: the name 'finer' is that of pforce_experiments\.finer_euler\.Finer"):
        register(type("Other", (DualLoop,), {"name": "finer"}))
    fields = {"name": "odd", "__annotations__": {"nfe": "int"}, "nfe": 3, "__module__": __name__}
    with pytest.raises(TypeError, match="nfe: no setting is called one of name, sampler, nfe, passes"):
        register(dataclass(frozen=True)(type("Odd", (DualLoop,), fields)))
    with pytest.raises(TypeError, match="searched: pace is none of its settings"):
        register(type("Odd", (DualLoop,), {"name": "odd", "searched": {"pace": Range(1, 2)}}))
