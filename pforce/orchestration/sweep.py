"""Sweeps as data: axes over the fields of an experiment, checked when they are defined.

A cell is one combination of axis values and a seed. Cells whose experiments give the same row (for example LTG with
sigma 0.5 and 0.6 under the reference truncation) are one piece of work: this is reported, and it is run once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pforce.base.errors import ConfigError
from pforce.base.files import digest
from pforce.config import Experiment, check_path, flat_params, with_fields
from pforce.orchestration.axes import (
    NOT_VARIED,
    SAMPLER,
    TIMESTEPS,
    Axis,
    Zip,
    changes_of,
    check_condition,
    expanded,
    format_value,
    holds,
)
from pforce.records.parts import CellParts, Inputs, cell_parts
from pforce.records.sweeps import IMAGES, require_name
from pforce.sampling.samplers import COMMON
from pforce.trial.where import with_precision

ROW = "row"
"""Header of the column of names, where rows have names."""
TRIAL = "trial"
"""Header of the column of numbers of a search's trials."""


@dataclass(frozen=True)
class NamedRow:
    """Fields that differ from the base, under a name: a row of a table that is not a point of a grid."""

    name: str
    """Name of the row in the table."""
    changes: Mapping[str, Any]
    """Dotted path → value, as `pforce.config.with_fields` takes them."""


@dataclass(frozen=True)
class Cell:
    """One combination of axis values and a seed."""

    values: tuple[tuple[str, Any], ...]
    """(header, value) of each axis, without the seed."""
    experiment: Experiment

    @property
    def rung(self) -> int | None:
        """Images seen at the rung that it is of a search's trial; None for a whole cell."""
        if len(self.values) > 1 and self.values[0][0] == TRIAL and self.values[-1][0] == IMAGES:
            return int(self.values[-1][1])
        return None

    @property
    def text(self) -> tuple[tuple[str, str], ...]:
        """(header, value) of each axis as texts."""
        return tuple((header, format_value(value)) for header, value in self.values)

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


class Point(NamedTuple):
    """A point that a search has chosen."""

    number: int
    """Number of its trial in the study."""
    values: Mapping[str, Any]
    """Dotted path → value; NOT_VARIED where an axis' condition does not hold."""


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
    known_by: Literal["settings", "name", "cells"] = "settings"
    """What makes another command's sweep this one. settings: its name, where all fields that do not vary are equal;
    with others it is refused. name: its name alone, for tables whose rows come from code. cells: its name and cells."""
    points: tuple[Point, ...] | None = None
    """Points that a search has chosen so far, in place of all combinations; axes may then have ranges."""

    def __post_init__(self) -> None:
        require_name(self.name)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: must be at least one seed, each once")
        paths = self._check_axes()
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise ConfigError(f"row {row.name}: is there twice")
            for path in expanded(row.changes):
                if path == "seed" or path in paths:
                    raise ConfigError(f"row {row.name}: {path} is an axis of the sweep, no field of a row")
        _ = self.all_cells  # every cell must be a valid experiment

    def _check_axes(self) -> set[str]:
        """All fields that the axes change. ConfigError for an axis that does not fit the base or the axes before it."""
        values: dict[str, list[Any]] = {}
        for axis in self.axes:
            if axis.range is not None and self.points is None:
                raise ConfigError(f"{axis.paths[0]}={axis.range}: is a range; give its number of points (--grid N)")
            if axis.range is None and not axis.steps:
                raise ConfigError(f"{axis.paths[0]}: an axis needs at least one value")
            if axis.when is not None:
                check_condition(axis.when, axis.paths[0], values)
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
        return [*self._own_headers, *([IMAGES] if any(header == IMAGES for header, _ in self._first_values) else [])]

    @property
    def _own_headers(self) -> list[str]:
        first = [ROW] if self.rows else [TRIAL] if self.points is not None else []
        return [*first, *self.axis_headers]

    @property
    def _first_values(self) -> tuple[tuple[str, Any], ...]:
        return self.all_cells[0].values if self.all_cells else ()

    def cells(self) -> list[Cell]:
        """All cells, seeds outermost, so that an interrupted sweep has complete tables with fewer seeds."""
        return list(self.all_cells)

    @cached_property
    def all_cells(self) -> tuple[Cell, ...]:
        """All cells, made once, because making one checks a whole experiment, and there may be thousands."""
        if self.points is not None:
            return tuple(self.cell_of(point, seed) for seed, point in itertools.product(self.seeds, self.points))
        headers = self._own_headers
        found = []
        for seed, row in itertools.product(self.seeds, self.rows or (None,)):
            own = expanded(row.changes) if row else {}
            for values in self._combinations():
                varied = {path: value for path, value in values.items() if value is not NOT_VARIED}
                changes = {**own, **expanded(varied), "seed": seed}
                shown = [*([row.name] if row else []), *values.values()]
                try:
                    experiment = with_fields(self.base, changes)
                except ConfigError as error:
                    if row is not None:
                        raise ConfigError(f"row {row.name}: {error}") from error
                    if "does not apply" not in str(error):
                        raise
                    cure = "or vary it only where it applies: --when FIELD=NAME right after its --axis"
                    raise ConfigError(f"{error}; {cure}") from error
                found.append(Cell(tuple(zip(headers, shown, strict=True)), experiment))
        if any(cell.experiment.training.snapshots for cell in found):
            found = [each for cell in found for each in _snapshots(cell)]
        return tuple(found)

    def cell_of(self, point: Point, seed: int) -> Cell:
        """The cell of a search's point. ConfigError where it is no valid experiment."""
        varied = {path: value for path, value in point.values.items() if value is not NOT_VARIED}
        experiment = with_fields(self.base, {**expanded(varied), "seed": seed})
        return Cell(tuple(zip(self._own_headers, (point.number, *point.values.values()), strict=True)), experiment)

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

    @cached_property
    def paths(self) -> list[str]:
        """Dotted paths of all fields that axes and rows change, each once."""
        own = [path for axis in self.axes for path in axis.paths]
        return list(dict.fromkeys([*own, *(path for row in self.rows for path in row.changes)]))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The fields of the base that no axis changes, by dotted path; where a sampler varies, only the settings that
        all samplers have."""
        whole = [path for path in (TIMESTEPS, SAMPLER) if path in self.paths]

        def varies(path: str) -> bool:
            part, _, setting = path.partition(".")
            return path in ("seed", *self.paths) or (part in whole and setting.partition(".")[0] not in COMMON)

        return {path: value for path, value in flat_params(self.base).items() if not varies(path)}

    def identity(self, work: Sequence[Work]) -> str:
        """Digest by which a command finds the same sweep again: of its name, or of its name and all cells."""
        if self.known_by == "cells":
            return digest("sweep", [self.name, sorted(item.fingerprint for item in work)])
        return digest("sweep of this name", [self.name])


def reads_of(experiment: Experiment) -> tuple[object, ...]:
    """The settings that a sweep reads once for all its cells."""
    e = experiment.evaluation
    return experiment.data, e.detector, e.detector_weights, e.further_detectors, e.reference


def _snapshots(cell: Cell) -> list[Cell]:
    """One cell per snapshot of a cell's training, and one for its end: rows of one training."""
    training, found = cell.experiment.training, []
    for images in sorted({*training.snapshots, training.images}):
        resumable = tuple(each for each in training.resumable if each <= images)
        budget = replace(training, images=images, snapshots=(), resumable=resumable)
        found.append(Cell((*cell.values, (IMAGES, images)), replace(cell.experiment, training=budget)))
    return found


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
