"""Identities of results: canonical forms of everything that determines them, under keys that are declared here.

A name must hold for years. So it does not depend on the names of attributes (`TABLE` declares their keys), on new
fields (fields at their defaults are left out), on the notation of numbers (2 and 2.0, 0.0 and −0.0), or on today's
defaults (`defaults.json`, beside this file, keeps those of the time when names were first made). A change of one
component's results raises that component's version, and all other results remain valid.
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
from pforce.base.files import digest, read_whole
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
        f"metric.{name}": 1
        for name in (
            "frechet",
            "frechet_infinity",
            "kernel",
            "precision_recall",
            "inception_score",
            "precision_recall_adm",
            "inception_score_adm",
            "density_coverage",
            "sliced",
            "class_accuracy",
            "class_kernel",
            "memorisation",
        )
    },
    **{f"held_out.{name}": 1 for name in ("loss", "difficulty", "context")},
    **{f"detector.{name}": 1 for name in ("openmoji", "fashion-mnist", "inception", "dinov2")},
    "training": 1,
}
"""Component → version. Raise a version where a change of the code changes the component's results: they are then made
again, and all others are kept. `tests/records/outputs.json` has a small output of each component; a test fails until
the version is raised."""


class IdentityError(InputError, RuntimeError):
    """No result can be named, because a file of pforce itself is damaged."""


class Fields(NamedTuple):
    """The part of names that a class of settings contributes."""

    component: str
    """Name in `defaults.json`."""
    keys: Mapping[str, str | None]
    """Attribute → key in the identity; None for attributes that do not change results beyond rounding."""


def _sampler(name: str, own: Mapping[str, str | None]) -> Fields:
    """Fields of a sampler's name: those of all samplers, and its own settings."""
    budget: dict[str, str | None] = {"num_function_evaluations": "nfe", "guidance": "guidance"}
    return Fields(f"sampler.{name}", {**budget, **own, "spacing": "spacing", "shift": "shift"})


TABLE: Mapping[type, Fields] = {
    ModelConfig: Fields(
        "model",
        {
            "depth": "depth", "width": "width", "heads": "heads", "patch": "patch", "image_size": "image_size",
            "channels": "channels", "classes": "classes", "difficulty_head": "difficulty_head",
            "class_dropout": "class_dropout", "mlp_ratio": "mlp_ratio", "attention": None,
            "modulation": None,
        },
    ),
    FlowConfig: Fields("flow", {"difficulty_weight": "difficulty_weight"}),
    # Data are identified by their manifest's hash, never by name or path; the hash covers the resolution.
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
            # Without the budget: a training is a function from images seen to weights, which no budget changes.
            "images": None, "batch": "batch", "accumulation": None, "ema_decay": "ema_decay",
            "ema_warmup": "ema_warmup", "precision": "precision", "compile": None, "checkpoint_every": None,
            "checkpoint_minutes": None,
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
    """Component → key → the default that names are made with. IdentityError for a damaged file."""
    try:
        content = json.loads(read_whole(path))
        found: dict[str, dict[str, Any]] = content["defaults"]
        whole = content["checksum"] == digest("defaults", found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IdentityError(f"{path} is damaged ({error!r}): no result can be named. Install pforce again") from error
    if not whole:
        raise IdentityError(
            f"{path} was changed: its checksum is not that of its entries, and results would get wrong names. "
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
    """A value as JSON of its declared type: 2 becomes 2.0 where a float is declared, −0.0 becomes 0.0, a tuple a
    list."""
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
    """Fields of a user's sampler: all fields under their own names, also where they are at their defaults, which are
    not kept."""
    if issubclass(cls, TimestepSampler):
        return Fields(f"timesteps.{cls.name}", {field.name: field.name for field in dataclasses.fields(cls)})
    if issubclass(cls, Sampler):
        return _sampler(cls.name, {name: name for name in own_settings(cls)})
    raise TypeError(f"{cls.__name__}: its fields are not declared in TABLE")


def _named(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a class's fields under their keys, with types coerced and without those at their defaults."""
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
    """A value of settings in the form that enters names: under declared keys, with types coerced, without fields at
    their defaults."""
    return _named(type(value), {each.name: getattr(value, each.name) for each in dataclasses.fields(value)})


def canonical_timesteps(sampler: TimestepSampler) -> dict[str, Any]:
    """The simplest timestep sampler with the same distribution, as plain data with its name."""
    simplest = sampler.canonical()
    return {"name": simplest.name, **canonical(simplest)}


def _guidance(guidance: Guidance) -> dict[str, Any]:
    """Guidance as plain data: the scale, and the interval where it matters."""
    found: dict[str, Any] = {"scale": float(guidance.scale) + 0.0}
    if guidance.interval is not None and tuple(guidance.interval) != (0, 1) and found["scale"] != 1:
        found["interval"] = [float(bound) + 0.0 for bound in guidance.interval]
    return found


def canonical_sampler(sampler: Sampler) -> dict[str, Any]:
    """A sampler as plain data: its name, the NFE that it spends, its guidance, its spacing, and its settings where they
    apply."""
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
    """Versions above 1 of components; only these enter a name. Users' components have no versions."""
    return {name: VERSIONS[name] for name in components if VERSIONS.get(name, 1) > 1}


def time_key(time: float) -> str:
    """A timestep as text with the two decimals that names have: `0.20`. ConfigError for one with more decimals."""
    text = f"{time:.2f}"
    if abs(float(text) - time) > 1e-9:
        raise ConfigError(f"timestep {time!r}: must have at most two decimals, as metrics are named by them ({text})")
    return text
