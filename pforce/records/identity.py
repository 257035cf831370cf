"""How results are named: canonical forms of what determines them, under keys that are declared here.

A name must hold for years. So it does not depend on what an attribute is called (`TABLE` declares its key), on a new
field (what is at its default is left out), on how a number is written (2 and 2.0, 0.0 and −0.0), or on what a default
is today (`defaults.json`, beside this file, says what it was when names were first made). What changes the result of
one component raises the version of that component, and forgets the results of no other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pforce import sampling as s
from pforce import timesteps as t
from pforce.base.errors import ConfigError, InputError
from pforce.base.files import digest
from pforce.data.config import DataConfig
from pforce.flow import FlowConfig
from pforce.models.config import ModelConfig
from pforce.sampling import Guidance, Sampler
from pforce.sampling.samplers import own_settings
from pforce.timesteps import TimestepSampler
from pforce.training.config import OptimizerConfig, TrainingConfig

VERSIONS: Mapping[str, int] = {
    **{f"timesteps.{name}": 1 for name in t.SAMPLERS},
    **{f"sampler.{name}": 1 for name in s.SAMPLERS},
    **{
        f"metric.{name}": 1 for name in ("frechet", "frechet_infinity", "kernel", "precision_recall", "inception_score")
    },
    **{f"held_out.{name}": 1 for name in ("loss", "difficulty", "context")},
    **{f"detector.{name}": 1 for name in ("openmoji", "fashion-mnist", "inception", "dinov2")},
    "training": 1,
}
"""Component → version. Raise one where a change of the code changes what the component gives: its results are then
made again, and all others stay. `tests/records/outputs.json` has a small output of each, and fails until that is done.
"""


class IdentityError(InputError, RuntimeError):
    """Nothing can be named: a file of pforce itself is damaged."""


class Fields(NamedTuple):
    """How a class of settings is named."""

    component: str
    """Name in `defaults.json`."""
    keys: Mapping[str, str | None]
    """Attribute → key in the identity; None for what does not change a result beyond rounding."""


def _sampler(name: str, own: Mapping[str, str | None]) -> Fields:
    """How a sampler is named: by what all samplers have, and by its own settings."""
    budget: dict[str, str | None] = {"num_function_evaluations": "nfe", "guidance": "guidance"}
    return Fields(f"sampler.{name}", {**budget, **own, "spacing": "spacing", "shift": "shift"})


TABLE: Mapping[type, Fields] = {
    ModelConfig: Fields(
        "model",
        {
            "depth": "depth", "width": "width", "heads": "heads", "patch": "patch", "image_size": "image_size",
            "channels": "channels", "classes": "classes", "difficulty_head": "difficulty_head",
            "class_dropout": "class_dropout", "mlp_ratio": "mlp_ratio", "attention": None,
        },
    ),
    FlowConfig: Fields("flow", {"difficulty_weight": "difficulty_weight"}),
    # Data are known by their manifest's hash, never by name or place; the hash holds the resolution.
    DataConfig: Fields("data", {"name": None, "resolution": None, "path": None, "streams": "streams", "flip": "flip"}),
    OptimizerConfig: Fields(
        "optimizer",
        {
            "learning_rate": "learning_rate", "weight_decay": "weight_decay", "betas": "betas",
            "warmup_steps": "warmup_steps", "gradient_norm": "gradient_norm",
            "decay_images": None,  # names a branch of the training, see `pforce.records.parts.training_part`
        },
    ),
    TrainingConfig: Fields(
        "training",
        {
            # Not the budget: weights are a function of the images seen, and a training is named by that function.
            "images": None, "batch": "batch", "accumulation": None, "ema_decay": "ema_decay",
            "ema_warmup": "ema_warmup", "precision": "precision", "compile": None, "checkpoint_every": None,
            "log_every": None, "snapshots": None, "resumable": None,
        },
    ),
    t.ParallelUniform: Fields("timesteps.parallel_uniform", {}),
    t.ParallelLogitNormal: Fields("timesteps.parallel_logit_normal", {"m": "m", "s": "s"}),
    t.IndependentUniform: Fields("timesteps.independent_uniform", {}),
    t.SRM: Fields("timesteps.srm", {"sharpness": "sharpness"}),
    t.TruncatedGaussian: Fields("timesteps.truncated_gaussian", {"sigma": "sigma", "truncation": "truncation"}),
    t.LTG: Fields("timesteps.ltg", {"m": "m", "s": "s", "sigma": "sigma", "truncation": "truncation"}),
    s.Euler: _sampler("euler", {}),
    s.DualLoop: _sampler(
        "dual_loop",
        {"quantile": "quantile", "threshold": "threshold", "pooling": "pooling", "inner_steps": "inner_steps"},
    ),
    s.LookAhead: _sampler(
        "look_ahead",
        {
            "quantile": "quantile", "threshold": "threshold", "pooling": "pooling", "context_ratio": "context_ratio",
            "start_after": "start_after",
        },
    ),
    s.RandomOrder: _sampler("random_order", {"quantile": "quantile", "inner_steps": "inner_steps"}),
}  # fmt: skip

DEFAULTS = Path(__file__).with_name("defaults.json")


def read_defaults(path: Path) -> dict[str, dict[str, Any]]:
    """Component → key → the default that names are made with. IdentityError for a file that is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, dict[str, Any]] = content["defaults"]
        whole = content["checksum"] == digest("defaults", found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IdentityError(f"{path} is damaged ({error!r}): no result can be named. Install pforce again") from error
    if not whole:
        raise IdentityError(
            f"{path} was changed: its checksum is not that of its entries, and results would get the names of others. "
            "Install pforce again"
        )
    return found


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    return read_defaults(DEFAULTS)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def coerced(value: Any, hint: Any, name: str) -> Any:
    """A value as JSON of its declared type: 2 is 2.0 where a float is declared, −0.0 is 0.0, a tuple a list."""
    if value is None or get_origin(hint) is Literal:
        return value
    if get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
        return coerced(value, hint, name)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        hints = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
        return [coerced(item, of, name) for item, of in zip(value, hints, strict=True)]
    if hint is float:
        if not math.isfinite(value):
            raise ConfigError(f"{name} = {value!r}: must be a finite number")
        return float(value) + 0.0  # −0.0 + 0.0 is 0.0
    return int(value) if hint is int else value


def _of_a_user(cls: Any) -> Fields:
    """A sampler that is not ours: every field of its own by its name, and written out, as nobody keeps its defaults."""
    if issubclass(cls, TimestepSampler):
        return Fields(f"timesteps.{cls.name}", {field.name: field.name for field in dataclasses.fields(cls)})
    if issubclass(cls, Sampler):
        return _sampler(cls.name, {name: name for name in own_settings(cls)})
    raise TypeError(f"{cls.__name__}: its fields are not declared in TABLE")


def _named(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a class's fields under their keys, types coerced, what is at its default left out."""
    fields, hints = TABLE.get(cls) or _of_a_user(cls), _hints(cls)
    defaults = _defaults().get(fields.component, {})
    found = {}
    for attribute, key in fields.keys.items():
        if key is None or attribute not in values:
            continue
        value = values[attribute]
        plain = (
            _guidance(value)
            if isinstance(value, Guidance)
            else coerced(value, hints[attribute], f"{fields.component}.{attribute}")
        )
        if key not in defaults or defaults[key] != plain:
            found[key] = plain
    return found


def canonical(value: Any) -> dict[str, Any]:
    """A class of settings as it enters a name: keys declared, types coerced, what is at its default left out."""
    return _named(type(value), {each.name: getattr(value, each.name) for each in dataclasses.fields(value)})


def canonical_timesteps(sampler: TimestepSampler) -> dict[str, Any]:
    """The simplest timestep sampler with the same distribution, with its name."""
    simplest = sampler.canonical()
    return {"name": simplest.name, **canonical(simplest)}


def _guidance(guidance: Guidance) -> dict[str, Any]:
    """The scale, and the interval where it changes anything."""
    found: dict[str, Any] = {"scale": float(guidance.scale) + 0.0}
    if guidance.interval is not None and tuple(guidance.interval) != (0, 1) and found["scale"] != 1:
        found["interval"] = [float(bound) + 0.0 for bound in guidance.interval]
    return found


def canonical_sampler(sampler: Sampler) -> dict[str, Any]:
    """A solver by name, with the NFE that it spends, its guidance, its spacing, and its settings where they apply."""
    values: dict[str, Any] = {
        "num_function_evaluations": sampler.schedule().num_function_evaluations,
        "guidance": sampler.guidance,
        "spacing": sampler.spacing,
        **sampler.settings,
    }
    if sampler.spacing == "shifted":
        values["shift"] = sampler.shift
    return {"name": sampler.name, **_named(type(sampler), values)}


def versions_of(*components: str) -> dict[str, int]:
    """The versions of components that are above 1: they enter a name. Components of users have none."""
    return {name: VERSIONS[name] for name in components if VERSIONS.get(name, 1) > 1}


def time_key(time: float) -> str:
    """A timestep in a name, with the two decimals that names have: `0.20`. ConfigError for one that has more."""
    text = f"{time:.2f}"
    if abs(float(text) - time) > 1e-9:
        raise ConfigError(f"timestep {time!r}: must have at most two decimals, as metrics are named by them ({text})")
    return text
