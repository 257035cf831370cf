"""Experiments as values. Oracles: round trips, and the messages that a user must get."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pforce import catalog
from pforce.base.errors import ConfigError
from pforce.config import check_path, field_paths, flat_params, from_dict, from_flat, to_dict, with_fields
from pforce.sampling import SAMPLERS as SOLVERS
from pforce.sampling import DualLoop, Euler, Guidance, RandomOrder
from pforce.timesteps import LTG, SAMPLERS, SRM
from pforce_experiments.imagenet256 import imagenet256_pft_b, imagenet256_sit_b
from pforce_experiments.openmoji32 import openmoji32_micro, openmoji32_s, openmoji32_sit_micro


def all_experiments():
    return sorted(catalog.experiments())


@pytest.mark.parametrize("name", all_experiments())
def test_every_named_experiment_survives_json(name):
    experiment = catalog.experiment(name)
    assert experiment.name == name
    assert from_dict(json.loads(json.dumps(to_dict(experiment)))) == experiment
    assert hash(experiment) == hash(catalog.experiment(name))


def test_the_catalogue_has_what_the_documents_name():
    for name in ("openmoji32.openmoji32_micro", "openmoji32_s", "imagenet256.imagenet256_pft_b"):
        assert catalog.experiment(name)
    for pft, sit in ((openmoji32_micro(), openmoji32_sit_micro()), (imagenet256_pft_b(), imagenet256_sit_b())):
        assert not sit.model.difficulty_head
        assert sit.timesteps.per_sample
        assert sit.training == pft.training


def test_imagenet_recipe_is_the_papers():
    """DESIGN, training recipe: AdamW 1e-4, batch 256, 400 k steps, warm-up 1000, EMA 0.9999, λ 0.01."""
    e = imagenet256_pft_b()
    assert (e.optimizer.learning_rate, e.optimizer.warmup_steps, e.optimizer.weight_decay) == (1e-4, 1000, 0.0)
    assert (e.training.batch, e.training.steps, e.training.ema_decay) == (256, 400_000, 0.9999)
    assert e.flow.difficulty_weight == 0.01
    assert e.timesteps == LTG(0.7, 1.0, 0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps.sigma": 0.0}, "timesteps.sigma = 0.0: must be > 0"),
        ({"timesteps.s": -1}, "timesteps.s = -1.0: must be > 0"),
        ({"timesteps.sigm": 1.0}, "timesteps.sigm: unknown field of experiment openmoji32_micro; did you mean"),
        ({"sigma": 1.0}, "did you mean timesteps.sigma"),
        ({"traning.batch": 32}, "did you mean training.batch"),
        ({"training.batch": 32.5}, "training.batch = 32.5"),
        ({"training.batch": "many"}, "training.batch = 'many'"),
        ({"training.images": 1000}, "a positive multiple of the batch 64, such as 1024"),
        ({"training.batch": 24}, "training.batch = 24: must be a multiple of data.streams = 16"),
        ({"model.heads": 5}, "model.heads = 5: must be a divisor of the width 128"),
        ({"data.resolution": 30}, "data.resolution = 30: must be a multiple of model.patch = 4"),
        ({"data.resolution": 64}, "model.image_size"),
        ({"timesteps": ["ltg", "srm"]}, "timesteps = ['ltg', 'srm']: must be one of parallel_uniform"),
        ({"sampler.guidance.scale": 2.0, "model.class_dropout": 0.0}, "sampler.guidance.scale = 2.0: must be 1"),
        ({"timesteps": "lgt"}, "timesteps = 'lgt': must be one of parallel_uniform"),
        ({"model.difficulty_head": False}, "timesteps = 'ltg': must be a sampler with one timestep per sample"),
        ({"evaluation.difficulty_timesteps": [0.2, 1.2]}, "between 0 and 1"),
        ({"evaluation.context_timesteps": [0.125]}, "of at most two decimals"),
        ({"evaluation.reference_images": 1}, "evaluation.reference_images = 1: must be ≥ 2"),
        ({"seed": -1}, "seed = -1: must be ≥ 0"),
        ({"sampler.guidance.interval": [0.5, 0.2]}, "sampler.guidance.interval"),
        ({"optimizer.learning_rate": float("nan")}, "finite"),
        ({"sampler": "heun"}, "sampler = 'heun': must be one of euler, dual_loop, look_ahead, random_order"),
        ({"sampler": ["euler"]}, "sampler = ['euler']: must be one of euler"),
        ({"sampler": 3}, "sampler = 3: must be one of euler"),
        ({"sampler.name": "dual_loop"}, "did you mean sampler?"),
        (
            {"sampler.inner_steps": 2},
            "sampler.inner_steps = 2: does not apply to euler: it is a setting of dual_loop, random_",
        ),
        ({"sampler.inner_steps": 2}, "order; euler has none"),
        ({"sampler": "look_ahead", "sampler.inner_steps": 2}, "look_ahead has quantile, threshold, pooling, context_"),
        ({"sampler": "look_ahead", "sampler.ratio": 2}, "sampler.ratio: unknown field; did you mean context_ratio?"),
        ({"sampler": "look_ahead", "sampler.ratio.x": 2}, "sampler.ratio.x: unknown field"),
        ({"sampler": "dual_loop", "sampler.quantile": 1.5}, "sampler.quantile = 1.5: must be between 0 and 1"),
        ({"sampler": "dual_loop", "sampler.inner_steps": 2.5}, "sampler.inner_steps = 2.5"),
        ({"sampler": "dual_loop", "sampler.num_function_evaluations": 3}, "sampler.num_function_evaluations = 3: must"),
        (
            {"timesteps.sharpness": 2.0},
            "timesteps.sharpness = 2.0: does not apply to ltg: it is a setting of srm; ltg has m",
        ),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    """Field, value and what is allowed, in one sentence."""
    changes = {"training.images": 64 * 24, **changes}
    with pytest.raises(ConfigError) as error:
        with_fields(openmoji32_micro(), changes)
    assert message in str(error.value)


def test_unknown_fields_of_a_record_are_refused():
    data = to_dict(openmoji32_micro())
    data["model"]["depht"] = 3
    with pytest.raises(ConfigError, match=r"model\.depht: unknown field; did you mean depth"):
        from_dict(data)
    with pytest.raises(ConfigError, match="must be a group of fields"):
        from_dict({**to_dict(openmoji32_micro()), "model": 3})


def test_an_unknown_experiment_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="openmoji32_mico: unknown experiment; did you mean openmoji32_micro"):
        catalog.experiment("openmoji32_mico")
    with pytest.raises(ConfigError, match="unknown experiment"):
        catalog.experiment("imagenet256.openmoji32_micro")


def test_a_sampler_can_be_changed_with_its_fields():
    changed = with_fields(openmoji32_micro(), {"timesteps.sharpness": 4, "timesteps": "srm"})
    assert changed.timesteps == SRM(4.0)
    assert with_fields(openmoji32_micro(), {"timesteps": SRM(2.0)}).timesteps == SRM(2.0)
    for name in SAMPLERS:
        assert with_fields(openmoji32_micro(), {"timesteps": name}).timesteps.name == name


def test_a_switched_solver_keeps_what_all_have():
    """NFE, guidance and spacing stay; the solver's own settings are its defaults."""
    base = with_fields(
        openmoji32_micro(),
        {"sampler": DualLoop(30, Guidance(1.5, (0.1, 0.9)), "shifted", 2.0, quantile=0.3, inner_steps=2)},
    )
    assert with_fields(base, {"sampler": "random_order"}).sampler == RandomOrder(
        30, Guidance(1.5, (0.1, 0.9)), "shifted", 2.0
    )
    changes = {"sampler.inner_steps": 3, "sampler.guidance.scale": 1.0, "sampler": "dual_loop"}
    assert with_fields(base, changes).sampler == DualLoop(30, Guidance(1, (0.1, 0.9)), "shifted", 2.0, inner_steps=3)
    assert with_fields(base, {"sampler": Euler(8)}).sampler == Euler(8)
    for name in SOLVERS:
        switched = with_fields(base, {"sampler": name})
        assert switched.sampler.name == name
        assert flat_params(switched)["sampler.name"] == name
        assert from_flat(flat_params(switched)) == switched


def test_samplers_of_before_are_read():
    """A file then had the settings of all solvers, with null where none was given; so had parameters of a run."""
    data = to_dict(openmoji32_micro())
    nulls = dict.fromkeys(("quantile", "threshold", "pooling", "inner_steps", "context_ratio", "start_after"))
    guidance = {"scale": 1.0, "interval": None}
    before = {"name": "dual_loop", "num_function_evaluations": 24, "guidance": guidance, **nulls, "spacing": "linear",
              "shift": None}  # fmt: skip
    assert from_dict({**data, "sampler": before}).sampler == DualLoop()
    given = {**before, "inner_steps": 2, "threshold": 0.1, "spacing": "shifted", "shift": 2.0}
    assert from_dict({**data, "sampler": given}).sampler == DualLoop(
        24, spacing="shifted", shift=2.0, threshold=0.1, inner_steps=2
    )
    params = {**flat_params(openmoji32_micro()), **{f"sampler.{name}": None for name in (*nulls, "shift")}}
    assert from_flat(params) == openmoji32_micro()
    with pytest.raises(
        ConfigError, match=r"sampler\.start_after = 0\.1: does not apply to \w+: it is a setting of look_ahead"
    ):
        from_dict({**data, "sampler": {**before, "start_after": 0.1}})


def test_every_field_can_be_set():
    experiment = openmoji32_micro()
    for path in field_paths(experiment):
        check_path(experiment, path)
    assert {"timesteps", "timesteps.m", "model.depth", "sampler.guidance.scale", "seed"} <= set(field_paths(experiment))
    assert {"sampler", "sampler.shift"} <= set(field_paths(experiment))
    check_path(experiment, "sampler.inner_steps")  # an axis of a sweep whose cells have a solver that has it


def test_experiments_are_frozen():
    with pytest.raises(AttributeError):
        openmoji32_s().seed = 3  # type: ignore[misc]
    assert replace(openmoji32_s(), seed=3).seed == 3
