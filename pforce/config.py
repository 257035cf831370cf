"""An experiment as one typed, frozen, validated, hashable value.

The parts are the core's own dataclasses, which check their ranges. Here they are put together and checked against each
other, read from and written to plain data with every name and type checked (pydantic, strict), and changed by dotted
paths. Names of results are made in `pforce.records.identity`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import json
import math
import pkgutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_type_hints

from pforce.base.errors import ConfigError, FieldError, UnknownName, did_you_mean, not_a_setting, require
from pforce.data.config import DataConfig
from pforce.flow import FlowConfig
from pforce.metrics.config import EvaluationConfig
from pforce.models.config import ModelConfig
from pforce.sampling import SAMPLERS, Euler, Sampler, check_sampler
from pforce.timesteps import LTG, TimestepSampler
from pforce.timesteps import SAMPLERS as TIMESTEP_SAMPLERS
from pforce.training.config import OptimizerConfig, TrainingConfig

EXPERIMENTS = "pforce.experiments"
"""Group of entry points that name packages of experiments; their modules may also register samplers."""

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Experiment:
    """A training and its evaluation: the configuration of everything that is run and measured."""

    name: str
    """Name in tables; it does not enter the names of results."""
    model: ModelConfig
    """The transformer."""
    timesteps: TimestepSampler = field(default_factory=LTG)
    """Distribution of the patch timesteps in training."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """The training objective."""
    data: DataConfig = field(default_factory=DataConfig)
    """The training images."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The training budget and how the training runs."""
    sampler: Sampler = field(default_factory=Euler)
    """The sampler of the evaluation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The measurements of the trained model."""
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
            "a sampler with one timestep per sample (parallel_uniform, parallel_logit_normal), as "
            "model.difficulty_head is False (SiT)",
        )

    @property
    def trunk(self) -> Experiment | None:
        """The training that a learning-rate decay branches off from, up to the branch; None where there is no decay, or
        where the decay is the whole training."""
        start = self.training.images - self.optimizer.decay_images
        if not self.optimizer.decay_images or not start:
            return None
        training = dataclasses.replace(self.training, images=start, snapshots=(), resumable=(start,))
        return dataclasses.replace(
            self, optimizer=dataclasses.replace(self.optimizer, decay_images=0), training=training
        )


T = TypeVar("T")

CHOSEN: Mapping[type, Mapping[str, type]] = {TimestepSampler: TIMESTEP_SAMPLERS, Sampler: SAMPLERS}
"""Base class of each part that is chosen by name → name → class; its fields are common to all."""


def modules() -> list[ModuleType]:
    """The imported modules of all packages, or plain modules, of experiments: they may register samplers, too."""
    found: dict[str, ModuleType] = {}
    for point in entry_points(group=EXPERIMENTS):
        package = _module(point.value, point.name)
        inside = [f"{point.value}.{info.name}" for info in pkgutil.iter_modules(getattr(package, "__path__", ()))]
        for name in inside or ([point.value] if package else []):
            if module := _module(name, point.name):
                found[module.__name__] = module
    return [*found.values()]


def _module(name: str, entry: str) -> ModuleType | None:
    """A module of experiments; None, with a warning, where it cannot be imported, so that the others are still
    found."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever another package's module raises
        warnings.warn(
            f"experiments of {name} (entry point {entry} of {EXPERIMENTS}) are left out, as it cannot be imported: "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return None


def named(kind: type, name: Any, path: str) -> type:
    """The class that a name chooses, also from a module of experiments. ConfigError for an unknown name."""
    known = CHOSEN[kind]
    if isinstance(name, str) and name not in known:
        modules()
    if not isinstance(name, str) or name not in known:
        raise UnknownName(path, name, known)
    return known[name]


def _kind(value: object) -> type | None:
    """The base class in `CHOSEN` of a part that was chosen by name; None for other values."""
    return next((kind for kind in CHOSEN if isinstance(value, kind)), None)


def _names(value: Any) -> list[str]:
    """Names of the fields of a dataclass, or of a value of one."""
    return [each.name for each in dataclasses.fields(value)]


def _own(kind: type, cls: type) -> list[str]:
    """Names of the fields that a class has beyond those of its base class in `CHOSEN`."""
    return [name for name in _names(cls) if name not in _names(kind)]


def _unknown(name: str, known: list[str], where: str) -> ConfigError:
    return ConfigError(f"{where}{name}: unknown field; {did_you_mean(name, known, 'it must be one of:', cutoff=0.5)}")


def to_dict(value: Any) -> Any:
    """An experiment or a part of it as plain data (JSON types); a part that was chosen by name includes its name."""
    if dataclasses.is_dataclass(value):
        name = {} if _kind(value) is None else {"name": cast(Any, value).name}
        return {**name, **{each: to_dict(getattr(value, each)) for each in _names(value)}}
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    return value


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """pydantic's checker of a type, made once: making one takes longer than a thousand checks."""
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


@cache
def _types_are_checked() -> bool:
    """Whether pydantic is installed. A machine that only carries out tasks planned elsewhere need not have it: types
    are then not checked, only ranges."""
    return importlib.util.find_spec("pydantic") is not None


def _as_tuples(value: Any) -> Any:
    """Plain data with tuples in place of JSON's lists, as in all fields of ours."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _leaf(hint: Any, value: Any, path: str) -> Any:
    """A plain value, checked strictly against a type. JSON mode accepts a list as a tuple and an int as a float."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value!r}: must be a finite number")
    value = int(value) if hint is int and isinstance(value, float) and value.is_integer() else value  # 1e6
    if not _types_are_checked():
        return _as_tuples(value)
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{path} = {value!r}: {reason}") from error


SETTINGS_OF_BEFORE = ("quantile", "threshold", "pooling", "inner_steps", "context_ratio", "start_after", "shift")
"""Settings that every sampler has in old files, written before each sampler was a class: null where none was given."""


def _without_nulls_of_before(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's fields without an old file's nulls, which stand for defaults and for other solvers' settings."""
    hints = _hints(cls)
    takes_none = {name for name in _own(Sampler, cls) if type(None) in get_args(hints[name])}
    return {
        name: value
        for name, value in data.items()
        if value is not None or name not in SETTINGS_OF_BEFORE or name in takes_none
    }


def _construct(cls: type[T], data: Any, path: str) -> T:
    """Build a dataclass from plain data. ConfigError with the dotted path of the field that is wrong."""
    prefix = f"{path}." if path else ""
    kind: type | None = None
    if cls in CHOSEN:
        kind, cls = cls, cast(type[T], named(cls, data.get("name") if isinstance(data, Mapping) else data, path))
        data = {k: v for k, v in data.items() if k != "name"} if isinstance(data, Mapping) else {}
        if kind is Sampler:
            data = _without_nulls_of_before(cls, data)
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} = {data!r}: must be a group of fields")
    hints = _hints(cast(Any, cls))
    names = _names(cls)
    arguments = {}
    for name, value in data.items():
        if name not in names:
            if kind is not None:
                _refuse_other_settings(kind, cls, prefix + name, value)
            raise _unknown(name, names, prefix)
        hint = hints[name]
        nested = dataclasses.is_dataclass(hint)
        arguments[name] = _construct(hint, value, prefix + name) if nested else _leaf(hint, value, prefix + name)
    try:
        return cls(**arguments)
    except FieldError as error:
        raise ConfigError(f"{prefix}{error}") from error
    except TypeError as error:
        raise ConfigError(f"{path or cls.__name__}: {error}") from error


def _refuse_other_settings(kind: type, cls: Any, path: str, value: Any) -> None:
    """Raise ConfigError where a field belongs to other classes with the same base class; it says to which."""
    own = {name: _own(kind, each) for name, each in CHOSEN[kind].items()}
    if any(path.rsplit(".", 1)[-1] in settings for settings in own.values()):
        raise ConfigError(str(not_a_setting(path, value, cls.name, own)))


def sampler_from_dict(data: Mapping[str, Any]) -> Sampler:
    """The inverse of `to_dict` for a sampler. ConfigError as `from_dict`."""
    return cast(Sampler, _construct(cast(type, Sampler), data, "sampler"))


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """The inverse of `to_dict`. ConfigError names the first field that is unknown, of a wrong type or out of range."""
    return _construct(Experiment, data, "")


def flat_params(experiment: Experiment) -> dict[str, object]:
    """All fields by dotted path, as parameters of a run; the timestep sampler's name is under `timesteps`, the
    sampler's under `sampler.name`."""
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
    """Dotted paths of all fields that can be set, `timesteps` and `sampler` themselves included."""

    def walk(value: Any, prefix: str) -> list[str]:
        paths = []
        for f in dataclasses.fields(value):
            inner = getattr(value, f.name)
            if _kind(inner) is not None:
                paths.append(prefix + f.name)
            paths += walk(inner, f"{prefix}{f.name}.") if dataclasses.is_dataclass(inner) else [prefix + f.name]
        return paths

    return walk(experiment, "")


def _is_path(experiment: Experiment, path: str) -> bool:
    """Whether `path` is one of `field_paths`, or would be with another timestep sampler or sampler. Does not list
    them."""
    value: Any = experiment
    *parents, leaf = path.split(".")
    for name in parents:
        if not dataclasses.is_dataclass(value) or name not in _names(value):
            return False
        value = getattr(value, name)
    if not dataclasses.is_dataclass(value):
        return False
    if leaf not in _names(value):
        kind = _kind(value)
        return kind is not None and any(leaf in _own(kind, each) for each in CHOSEN[kind].values())
    value = getattr(value, leaf)
    return _kind(value) is not None or not dataclasses.is_dataclass(value)


def check_path(experiment: Experiment, path: str) -> None:
    """Raise ConfigError, with the nearest known name, where `path` is no field of this experiment with any timestep
    sampler and sampler."""
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


def check_setting(experiment: Experiment, path: str, value: Any) -> None:
    """Raise ConfigError where a path is a setting of timestep samplers or samplers other than the experiment's; it says
    of which. All other paths pass."""
    part, _, setting = path.partition(".")
    chosen = getattr(experiment, part, None)
    kind = _kind(chosen)
    if kind is not None and setting not in _names(chosen):
        _refuse_other_settings(kind, type(chosen), path, value)


def with_fields(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """A copy of the experiment with fields at dotted paths changed: `{"timesteps.m": 0.5, "seed": 1}`.

    `timesteps` takes a timestep sampler, or the name of one with its defaults. `sampler` takes a sampler, or its name:
    then NFE, guidance and spacing are kept, and the solver's own settings are its defaults. ConfigError as in
    `from_dict`.
    """
    data = to_dict(experiment)  # below: whole parts first, so that timesteps and timesteps.sharpness may change
    for path in sorted(changes, key=lambda p: p.count(".")):
        *parents, leaf = path.split(".")
        if not parents or parents[0] not in changes:  # else checked when the new part is built
            check_path(experiment, path)
        target = data
        for parent in parents:
            target = target.get(parent) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ConfigError(f"{path}: unknown field of experiment {experiment.name}")
        value = changes[path]
        kind = _kind(getattr(experiment, path, None))
        if kind is not None and isinstance(value, str):
            value = {"name": value, **{name: target[leaf][name] for name in _names(kind)}}
        target[leaf] = to_dict(value)
    return from_dict(data)
