"""Axes of a sweep: values, ranges, fields that change together, conditions, and samplers with their settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pforce.base.errors import ConfigError, did_you_mean
from pforce.sampling import Sampler
from pforce.sampling.samplers import COMMON
from pforce.timesteps import TimestepSampler

TIMESTEPS, SAMPLER = "timesteps", "sampler"
"""Fields that are chosen by name, with settings of their own."""
NOT_VARIED = "–"
"""Value of an axis in a cell in which its condition does not hold."""


@dataclass(frozen=True)
class Choice:
    """A sampler or timestep sampler with its settings as the value of a field: `ltg:m=0.7,sigma=0.2`."""

    name: str
    settings: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.name}:{','.join(f'{name}={format_value(value)}' for name, value in self.settings)}"


def changes_of(path: str, value: Any) -> dict[str, Any]:
    """The fields that a value changes: of a Choice, the field and its settings."""
    if not isinstance(value, Choice):
        return {path: value}
    return {path: value.name, **{f"{path}.{name}": setting for name, setting in value.settings}}


def expanded(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes with the settings of choices as fields of their own. ConfigError for one that is given twice."""
    found: dict[str, Any] = {}
    for name, value in changes.items():
        for path, each in changes_of(name, value).items():
            if path in found:
                raise ConfigError(f"{path}: is given twice, once as a setting of {path.rpartition('.')[0]}")
            found[path] = each
    return found


@dataclass(frozen=True)
class Range:
    """Values between two, ends included: for a search, or as points of a grid."""

    low: float
    high: float
    log: bool = False
    """Equal ratios instead of equal differences."""
    integer: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"{self}: its smaller end comes first, as in {self.high:g}..{self.low:g}")
        if self.log and self.low <= 0:
            raise ConfigError(f"{self}: equal ratios need ends above 0")
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ConfigError(f"{self}: its ends are whole numbers")

    def __str__(self) -> str:
        return f"{'log:' if self.log else 'int:' if self.integer else ''}{self.low:g}..{self.high:g}"

    def points(self, count: int) -> tuple[float, ...]:
        """Points at equal distances (or ratios), ends included, each once."""
        shares = [number / (count - 1) for number in range(count)]
        if self.log:
            values = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            values = [self.low + (self.high - self.low) * share for share in shares]
        values[-1] = self.high
        # Twelve digits: a value is read and typed again, and 0.30000000000000004 names another training than 0.3.
        return tuple(dict.fromkeys(round(v) if self.integer else float(f"{v:.12g}") for v in values))


@dataclass(frozen=True)
class Axis:
    """Values of one field."""

    path: str
    """Dotted path of the field: `timesteps.m`."""
    values: tuple[Any, ...]
    when: tuple[str, Any] | None = None
    """(field, value) of an axis before it: only there it varies; elsewhere the field is as the experiment has it."""
    range: Range | None = None
    """Values between two, instead of `values`; see `Sweep.with_grid`."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The field, as `Zip` has several."""
        return (self.path,)

    @property
    def steps(self) -> tuple[tuple[Any, ...], ...]:
        """Values, as `Zip` has several at once."""
        return tuple((value,) for value in self.values)

    def with_points(self, count: int) -> Axis:
        """The axis with points in place of its range."""
        return self if self.range is None else replace(self, values=self.range.points(count), range=None)


@dataclass(frozen=True)
class Zip:
    """Fields that change together."""

    paths: tuple[str, ...]
    steps: tuple[tuple[Any, ...], ...]
    """Values of the fields, one tuple for each step."""
    when = None
    range = None


def _same(value: Any, wanted: Any) -> bool:
    """Whether an axis has a value; a sampler with its settings has its name's."""
    return bool((value.name if isinstance(value, Choice) else value) == wanted)


def holds(axis: Axis | Zip, values: Mapping[str, Any]) -> bool:
    """Whether the condition of an axis holds, for the values of the axes before it."""
    return axis.when is None or _same(values.get(axis.when[0]), axis.when[1])


def check_condition(when: tuple[str, Any], path: str, values: Mapping[str, Sequence[Any]]) -> None:
    """Raise ConfigError unless an axis before has the field and the value of a condition."""
    field, wanted = when
    told = f"--when {field}={format_value(wanted)}"
    if field == path:
        raise ConfigError(f"{told}: stands after the axis of {path} itself; put it after the axis that it limits")
    if field not in values:
        raise ConfigError(f"{told}: {field} is no axis before {path}; put --axis {field}=… before it")
    if not any(_same(value, wanted) for value in values[field]):
        names = dict.fromkeys(
            value.name if isinstance(value, Choice) else format_value(value) for value in values[field]
        )
        raise ConfigError(f"{told}: {field} has no such value; {did_you_mean(format_value(wanted), names, 'it has')}")


def format_value(value: Any) -> str:
    """An axis value as text for labels and tables."""
    if isinstance(value, (TimestepSampler, Sampler)):
        return value.name
    if isinstance(value, float):
        # Short where that is exact: two values must never look alike.
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def check_settings(settings: Mapping[str, Any], changed: Iterable[str]) -> None:
    """Raise ConfigError where a field that is set for all cells is changed by an axis or a row, which would win without
    a word; a sampler or timestep sampler that varies brings its own settings."""
    for path in changed:
        own = {path} | {
            each for each in settings
            if path in (TIMESTEPS, SAMPLER) and each.startswith(f"{path}.") and each.rpartition(".")[2] not in COMMON
            and each.count(".") == 1
        }  # fmt: skip
        for each in [each for each in settings if each in own]:
            varies = "varies" if each == path else f"is lost where {path} varies"
            raise ConfigError(
                f"--set {each}: {varies}; leave it out, or give it with the value, such as {path}=NAME:SETTING=VALUE"
                if path in (TIMESTEPS, SAMPLER) else f"--set {each}: {varies}; leave it out"
            )  # fmt: skip
