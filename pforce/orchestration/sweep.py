"""Sweeps as data: axes over the fields of an experiment, checked when they are defined.

A cell is one combination of axis values and a seed. Cells whose experiments give the same row (for example LTG with
sigma 0.5 and 0.6 under the reference truncation) are one piece of work: this is reported, and it is run once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pforce.base.errors import ConfigError, did_you_mean
from pforce.base.files import digest
from pforce.config import Experiment, check_path, with_fields
from pforce.records.parts import CellParts, Inputs, cell_parts
from pforce.records.sweeps import require_name
from pforce.sampling import Sampler
from pforce.sampling.samplers import COMMON
from pforce.timesteps import TimestepSampler
from pforce.trial.where import with_precision

IMAGES = "images_seen"
"""Header of the column of images seen, where a training is measured at several."""
ROW = "row"
"""Header of the column of names, where rows have names."""


@dataclass(frozen=True)
class NamedRow:
    """Fields that differ from the base, under a name: a row of a table that is not a point of a grid."""

    name: str
    """Name of the row in the table."""
    changes: Mapping[str, Any]
    """Dotted path → value, as `pforce.config.with_fields` takes them."""


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


def _expanded(changes: Mapping[str, Any]) -> dict[str, Any]:
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
            raise ConfigError(f"{self}: its ends are a smaller and a larger number")
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


TIMESTEPS, SAMPLER = "timesteps", "sampler"
"""Fields that are chosen by name, with settings of their own."""
NOT_VARIED = "–"
"""Value of an axis in a cell in which its condition does not hold."""


def _same(value: Any, wanted: Any) -> bool:
    """Whether an axis has a value; a sampler with its settings has its name's."""
    return bool((value.name if isinstance(value, Choice) else value) == wanted)


def holds(axis: Axis | Zip, values: Mapping[str, Any]) -> bool:
    """Whether the condition of an axis holds, for the values of the axes before it."""
    return axis.when is None or _same(values.get(axis.when[0]), axis.when[1])


def _check_condition(when: tuple[str, Any], path: str, values: Mapping[str, Sequence[Any]]) -> None:
    """Raise ConfigError unless an axis before has the field and the value of a condition."""
    field, wanted = when
    told = f"--when {field}={format_value(wanted)}"
    if field not in values:
        raise ConfigError(f"{told}: {field} is no axis before {path}; give it one, before")
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


@dataclass(frozen=True)
class Cell:
    """One combination of axis values and a seed."""

    values: tuple[tuple[str, Any], ...]
    """(header, value) of each axis, without the seed."""
    experiment: Experiment

    @property
    def label(self) -> str:
        """Label of the cell: `m=0.7 s=1 sigma=0.6 seed=0`."""
        parts = [f"{header}={format_value(value)}" for header, value in self.values]
        return " ".join([*parts, f"seed={self.experiment.seed}"])


@dataclass(frozen=True)
class Work:
    """One piece of work: the parts of a row, and the cells with these parts."""

    parts: CellParts
    cells: tuple[Cell, ...]

    @property
    def fingerprint(self) -> str:
        """The digest of the cell: equal for cells that give the same row."""
        return self.parts.digest

    @property
    def training(self) -> str:
        """The digest of the training, which is the same for cells that differ only in sampler, evaluation or budget."""
        return self.parts.training.digest

    @property
    def experiment(self) -> Experiment:
        """The experiment of the first cell, with resolved precision; the others give the same result."""
        return self.cells[0].experiment

    @property
    def label(self) -> str:
        """The first cell's label."""
        return self.cells[0].label


@dataclass(frozen=True)
class Sweep:
    """A grid over fields of `base`, with every seed for every cell. ConfigError where an axis does not fit."""

    name: str
    base: Experiment
    axes: tuple[Axis | Zip, ...]
    seeds: tuple[int, ...] = (0,)
    rows: tuple[NamedRow, ...] = ()
    """Named rows, which form an axis `row` before all others; without any, the grid is over the base alone."""
    longer: str = ""
    """Option of the command that makes this sweep long enough to rank its cells; empty where it has none."""

    def __post_init__(self) -> None:
        require_name(self.name)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: must be at least one seed, each once")
        paths = self._check_axes()
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise ConfigError(f"row {row.name}: is there twice")
            for path in _expanded(row.changes):
                if path == "seed" or path in paths:
                    raise ConfigError(f"row {row.name}: {path} is an axis of the sweep, no field of a row")
        _ = self.all_cells  # every cell must be a valid experiment

    def _check_axes(self) -> set[str]:
        """All fields that the axes change. ConfigError for an axis that does not fit the base or the axes before it."""
        values: dict[str, list[Any]] = {}
        for axis in self.axes:
            if axis.range is not None:
                raise ConfigError(f"{axis.paths[0]}={axis.range}: is a range; give its number of points (--grid N)")
            if not axis.steps:
                raise ConfigError(f"{axis.paths[0]}: an axis needs at least one value")
            if axis.when is not None:
                _check_condition(axis.when, axis.paths[0], values)
            for number, path in enumerate(axis.paths):
                if path == "seed":
                    raise ConfigError("seed: is an axis of every sweep; set its values with seeds")
                if path in values:
                    raise ConfigError(f"{path}: is an axis twice")
                check_path(self.base, path)
                values[path] = [step[number] for step in axis.steps]
        # A choice may bring settings, which another axis would change without a word in the cell's name.
        for path, own in values.items():
            for setting in dict.fromkeys(name for value in own for name in changes_of(path, value) if name != path):
                if setting in values:
                    raise ConfigError(
                        f"{setting}: is an axis, and a setting of a value of {path}; set it in one of them"
                    )
        return {name for path, own in values.items() for value in own for name in changes_of(path, value)}

    @property
    def axis_headers(self) -> list[str]:
        """Names of the axes in tables: the last part of the path (`m`), or the whole path where two have the same last
        part."""
        paths = [path for axis in self.axes for path in axis.paths]
        last = [path.rsplit(".", 1)[-1] for path in paths]
        return [name if last.count(name) == 1 else path for name, path in zip(last, paths, strict=True)]

    @property
    def headers(self) -> list[str]:
        """Names of a cell's values in tables."""
        return [header for header, _ in self.all_cells[0].values]

    def cells(self) -> list[Cell]:
        """All cells, seeds outermost, so that an interrupted sweep has complete tables with fewer seeds."""
        return list(self.all_cells)

    @cached_property
    def all_cells(self) -> tuple[Cell, ...]:
        """All cells, made once, because making one checks a whole experiment, and there may be thousands."""
        headers = [*([ROW] if self.rows else []), *self.axis_headers]
        found = []
        for seed, row in itertools.product(self.seeds, self.rows or (None,)):
            own = _expanded(row.changes) if row else {}
            for values in self._combinations():
                varied = {path: value for path, value in values.items() if value is not NOT_VARIED}
                changes = {**own, **_expanded(varied), "seed": seed}
                shown = [*([row.name] if row else []), *values.values()]
                try:
                    experiment = with_fields(self.base, changes)
                except ConfigError as error:
                    if row is None:
                        raise
                    raise ConfigError(f"row {row.name}: {error}") from error
                found.append(Cell(tuple(zip(headers, shown, strict=True)), experiment))
        if any(cell.experiment.training.snapshots for cell in found):
            found = [each for cell in found for each in _snapshots(cell)]
        return tuple(found)

    def _combinations(self) -> list[dict[str, Any]]:
        """Path → value for each combination of the axes' values; NOT_VARIED where an axis' condition does not hold."""
        found: list[dict[str, Any]] = [{}]
        for axis in self.axes:
            grown = []
            for values in found:
                steps = axis.steps if holds(axis, values) else (tuple(NOT_VARIED for _ in axis.paths),)
                grown += [{**values, **dict(zip(axis.paths, step, strict=True))} for step in steps]
            found = grown
        return found

    def work(self, inputs: Inputs) -> list[Work]:
        """The pieces of work, in order, with their cells; `auto` precision is resolved."""
        groups: dict[str, tuple[CellParts, list[Cell]]] = {}
        for cell in self.all_cells:
            resolved = replace(cell, experiment=with_precision(cell.experiment, inputs))
            parts = cell_parts(resolved.experiment, inputs)
            groups.setdefault(parts.digest, (parts, []))[1].append(resolved)
        return [Work(parts, tuple(cells)) for parts, cells in groups.values()]

    def identity(self, work: list[Work]) -> str:
        """Digest of the name and of all cells, by which the same command finds its own parent run again."""
        return digest("sweep", [self.name, sorted(item.fingerprint for item in work)])


def _snapshots(cell: Cell) -> list[Cell]:
    """One cell per snapshot of a cell's training, and one for its end: rows of one training."""
    training, found = cell.experiment.training, []
    for images in sorted({*training.snapshots, training.images}):
        resumable = tuple(each for each in training.resumable if each <= images)
        budget = replace(training, images=images, snapshots=(), resumable=resumable)
        found.append(Cell((*cell.values, (IMAGES, images)), replace(cell.experiment, training=budget)))
    return found


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


def same_distribution_notes(work: list[Work]) -> list[str]:
    """One sentence per group of axis values that give the same result."""
    notes = []
    for item in work:
        if len(item.cells) > 1:
            names = " and ".join(cell.label for cell in item.cells)
            notes.append(f"{names}: the same distribution (fingerprint {item.fingerprint[:12]}); run once")
    return notes


def unspent_notes(work: list[Work]) -> list[str]:
    """One sentence per sampler that cannot spend the NFE that it is given."""
    found = (item.experiment.sampler.unspent for item in work)
    return list(dict.fromkeys(sentence for sentence in found if sentence is not None))
