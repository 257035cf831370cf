"""The whole experiment as one typed, frozen, validated, hashable value.

The parts are the core's own dataclasses, which check their ranges. Here they are put together, checked against
each other, read from and written to plain data with every name and type checked (pydantic, strict), and changed by
dotted paths. How results are named is in `pforce.records.identity`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from pforce.data.config import DataConfig
from pforce.flow import FlowConfig
from pforce.metrics.config import EvaluationConfig
from pforce.models.config import ModelConfig
from pforce.sampling import SamplerConfig, check_sampler
from pforce.timesteps import LTG, SAMPLERS, TimestepSampler
from pforce.training.config import OptimizerConfig, TrainingConfig
from pforce.validation import ConfigError, FieldError, did_you_mean, require

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Experiment:
    """A training and its evaluation."""

    name: str
    """What tables call it; results are not named by it."""
    model: ModelConfig
    """The transformer."""
    timesteps: TimestepSampler = field(default_factory=LTG)
    """How patch timesteps are drawn in training."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """The training objective."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The training budget."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """The sampler of the evaluation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured."""
    seed: int = 0
    """Seed of weights, data order and training noise."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "≥ 0")
        patch = self.model.patch
        require(
            self.data.resolution % patch == 0,
            "data.resolution",
            self.data.resolution,
            f"a multiple of model.patch = {patch}",
        )
        require(
            self.model.image_size == (self.data.resolution, self.data.resolution),
            "model.image_size",
            self.model.image_size,
            f"({self.data.resolution}, {self.data.resolution}), as data.resolution is {self.data.resolution}",
        )
        require(
            self.training.batch % self.data.streams == 0,
            "training.batch",
            self.training.batch,
            f"a multiple of data.streams = {self.data.streams}",
        )
        decay = self.optimizer.decay_images
        require(
            decay <= self.training.images and decay % self.training.batch == 0,
            "optimizer.decay_images",
            decay,
            f"a multiple of training.batch = {self.training.batch}, at most training.images = {self.training.images}",
        )
        check_sampler(self.sampler, self.model, "sampler.")
        require(
            self.model.difficulty_head or self.timesteps.per_sample,
            "timesteps",
            self.timesteps.name,
            "a sampler with one timestep a sample (parallel_uniform, parallel_logit_normal), as "
            "model.difficulty_head is False (SiT)",
        )

    @property
    def trunk(self) -> Experiment | None:
        """The training that a decay branches off from, up to where it does; None where there is no decay, or nothing
        before it."""
        start = self.training.images - self.optimizer.decay_images
        if not self.optimizer.decay_images or not start:
            return None
        training = dataclasses.replace(self.training, images=start, snapshots=(), resumable=(start,))
        return dataclasses.replace(
            self, optimizer=dataclasses.replace(self.optimizer, decay_images=0), training=training
        )


T = TypeVar("T")


def _unknown(name: str, known: list[str], where: str) -> ConfigError:
    return ConfigError(f"{where}{name}: unknown field; {did_you_mean(name, known, 'it must be one of:', cutoff=0.5)}")


def to_dict(value: Any) -> Any:
    """An experiment or a part of it as plain data (JSON types); a timestep sampler carries its name."""
    if isinstance(value, TimestepSampler):
        return {"name": value.name, **{f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    return value


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Made once per type: making one takes longer than a thousand checks."""
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


@cache
def _types_are_checked() -> bool:
    """Whether pydantic is here. On a machine that only carries out what was planned elsewhere it need not be: values
    are then taken as they are, and their ranges checked."""
    return importlib.util.find_spec("pydantic") is not None


def _as_tuples(value: Any) -> Any:
    """JSON's lists as tuples, which is what every list of ours is."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _leaf(hint: Any, value: Any, path: str) -> Any:
    """A plain value checked strictly against a type; JSON mode lets a list be a tuple and an int a float."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value!r}: must be a finite number")
    if not _types_are_checked():
        return _as_tuples(value)
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{path} = {value!r}: {reason}") from error


def _timestep_class(data: Any, path: str) -> type[TimestepSampler]:
    name = data.get("name") if isinstance(data, Mapping) else data
    if not isinstance(name, str) or name not in SAMPLERS:
        raise ConfigError(f"{path} = {name!r}: must be one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def _construct(cls: type[T], data: Any, path: str) -> T:
    """Build a dataclass from plain data. ConfigError with the dotted path of what is wrong."""
    prefix = f"{path}." if path else ""
    if issubclass(cls, TimestepSampler):
        cls = cast(type[T], _timestep_class(data, path))
        data = {k: v for k, v in data.items() if k != "name"} if isinstance(data, Mapping) else {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} = {data!r}: must be a group of fields")
    hints = _hints(cast(Any, cls))
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments = {}
    for name, value in data.items():
        if name not in names:
            raise _unknown(name, names, prefix)
        hint = hints[name]
        nested = dataclasses.is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, TimestepSampler))
        arguments[name] = _construct(hint, value, prefix + name) if nested else _leaf(hint, value, prefix + name)
    try:
        return cls(**arguments)
    except FieldError as error:
        raise ConfigError(f"{prefix}{error}") from error
    except TypeError as error:
        raise ConfigError(f"{path or cls.__name__}: {error}") from error


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """The inverse of `to_dict`. ConfigError names the first field that is unknown, of a wrong type or out of range."""
    return _construct(Experiment, data, "")


def flat_params(experiment: Experiment) -> dict[str, object]:
    """Every field by its dotted path, as run parameters; the sampler's name under `timesteps`."""
    flat: dict[str, object] = {}

    def walk(data: dict[str, Any], prefix: str) -> None:
        for key, value in data.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(to_dict(experiment), "")
    flat["timesteps"] = flat.pop("timesteps.name")
    return flat


def from_flat(params: Mapping[str, Any]) -> Experiment:
    """The inverse of `flat_params`. ConfigError as `from_dict`."""
    data: dict[str, Any] = {}
    for path, value in params.items():
        *parents, leaf = ("timesteps.name" if path == "timesteps" else path).split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
    return from_dict(data)


def field_paths(experiment: Experiment) -> list[str]:
    """Dotted paths of all fields that can be set, `timesteps` itself included."""

    def walk(value: Any, prefix: str) -> list[str]:
        paths = []
        for f in dataclasses.fields(value):
            inner = getattr(value, f.name)
            if isinstance(inner, TimestepSampler):
                paths.append(prefix + f.name)
            paths += walk(inner, f"{prefix}{f.name}.") if dataclasses.is_dataclass(inner) else [prefix + f.name]
        return paths

    return walk(experiment, "")


def _is_path(experiment: Experiment, path: str) -> bool:
    """Whether `path` is one of `field_paths`, without listing them."""
    value: Any = experiment
    for name in path.split("."):
        if not dataclasses.is_dataclass(value) or name not in value.__dataclass_fields__:
            return False
        value = getattr(value, name)
    return isinstance(value, TimestepSampler) or not dataclasses.is_dataclass(value)


def check_path(experiment: Experiment, path: str) -> None:
    """ConfigError with the nearest right name where `path` is no field of this experiment."""
    if _is_path(experiment, path):
        return
    known = field_paths(experiment)
    # A bare or misspelt last part is best matched among last parts: timesteps.sigm → timesteps.sigma.
    last = {known_path.rsplit(".", 1)[-1]: known_path for known_path in known}
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.7) or [
        last[name] for name in difflib.get_close_matches(path.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
    ]
    hint = f"did you mean {near[0]}?" if near else "fields are: " + ", ".join(known)
    raise ConfigError(f"{path}: unknown field of experiment {experiment.name}; {hint}")


def with_fields(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """A copy with fields at dotted paths changed: `{"timesteps.m": 0.5, "seed": 1}`.

    `timesteps` takes a sampler, or its name for its defaults. ConfigError as in `from_dict`.
    """
    data = to_dict(experiment)
    # Whole parts first, so that {"timesteps": "srm", "timesteps.sharpness": 4} works in any order.
    for path in sorted(changes, key=lambda p: p.count(".")):
        if path.startswith("timesteps.") and "timesteps" in changes:
            pass  # the new sampler's fields are checked when it is built
        else:
            check_path(experiment, path)
        *parents, leaf = path.split(".")
        target = data
        for parent in parents:
            target = target[parent]
        value = changes[path]
        if path == "timesteps" and isinstance(value, str):
            value = {"name": value}
        target[leaf] = to_dict(value)
    return from_dict(data)
