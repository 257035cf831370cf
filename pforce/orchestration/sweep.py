"""Sweeps as data: axes over the fields of an experiment, checked when they are defined.

A cell is one combination of axis values and a seed. Cells whose experiments give the same row (for example LTG with
sigma 0.5 and 0.6 under the reference truncation) are one piece of work: this is reported, and it is run once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pforce.base.errors import ConfigError
from pforce.base.files import digest
from pforce.config import Experiment, check_path, with_fields
from pforce.records.parts import CellParts, Inputs, cell_parts
from pforce.records.sweeps import require_name
from pforce.sampling import Sampler
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
class Axis:
    """Values of one field."""

    path: str
    """Dotted path of the field: `timesteps.m`."""
    values: tuple[Any, ...]


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
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...] = (0,)
    rows: tuple[NamedRow, ...] = ()
    """Named rows, which form an axis `row` before all others; without any, the grid is over the base alone."""
    longer: str = ""
    """Option of the command that makes this sweep long enough to rank its cells; empty where it has none."""

    def __post_init__(self) -> None:
        require_name(self.name)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: must be at least one seed, each once")
        paths = [axis.path for axis in self.axes]
        for axis in self.axes:
            if axis.path == "seed":
                raise ConfigError("seed: is an axis of every sweep; set its values with seeds")
            if paths.count(axis.path) > 1:
                raise ConfigError(f"{axis.path}: is an axis twice")
            if not axis.values:
                raise ConfigError(f"{axis.path}: an axis needs at least one value")
            check_path(self.base, axis.path)
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise ConfigError(f"row {row.name}: is there twice")
            for path in row.changes:
                if path == "seed" or path in paths:
                    raise ConfigError(f"row {row.name}: {path} is an axis of the sweep, no field of a row")
        _ = self.all_cells  # every cell must be a valid experiment

    @property
    def axis_headers(self) -> list[str]:
        """Names of the axes in tables: the last part of the path (`m`), or the whole path where two have the same last
        part."""
        last = [axis.path.rsplit(".", 1)[-1] for axis in self.axes]
        return [name if last.count(name) == 1 else axis.path for name, axis in zip(last, self.axes, strict=True)]

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
        paths = [axis.path for axis in self.axes]
        rows = self.rows or (None,)
        headers = [*([ROW] if self.rows else []), *self.axis_headers]
        found = []
        for seed in self.seeds:
            for row, *values in itertools.product(rows, *(axis.values for axis in self.axes)):
                changes = {**(row.changes if row else {}), **dict(zip(paths, values, strict=True)), "seed": seed}
                shown = [row.name, *values] if row else values
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


def parse_axis(text: str) -> Axis:
    """Parse `timesteps.m=0,0.7` as an Axis. Values are numbers, true/false, or words. ConfigError where there is no
    `=`."""
    path, sign, values = text.partition("=")
    if not sign or not path or not values:
        raise ConfigError(f"{text}: an axis is FIELD=VALUE,VALUE,… such as timesteps.m=0,0.7")
    return Axis(path.strip(), tuple(parse_value(value.strip()) for value in values.split(",")))


def parse_value(text: str) -> Any:
    """Parse a text as a number, True, False or None; other texts are returned as they are."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
