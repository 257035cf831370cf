"""The paper's tables as data: rows, the paper's own numbers beside them, and what is claimed of them.

A table is rows (what changes against the base experiment), settings, and statements; a scale says on what base, how
long and with how many seeds. `pforce_experiments.paper` has them all. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pforce.base.errors import require
from pforce.config import Experiment, with_fields
from pforce.metrics.names import DISTANCES, MetricName

MOST_STATEMENTS = 6
"""A correction for more finds nothing at the few seeds that anybody can afford."""

ScaleName = Literal["smoke", "cpu", "gpu", "paper"]
Figure = Literal["bars", "curves", "difficulty", "context_helps", "context_uncertainty", "none"]


@dataclass(frozen=True)
class TableRow:
    """A row: a name and the fields that differ from the scale's base experiment."""

    name: str
    """What the table calls it."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path → value, as `pforce.config.with_fields` takes them."""
    paper: str | None = None
    """The row of the paper's table that it is set beside, by its name there."""


@dataclass(frozen=True)
class Value:
    """A number of a row: what a statement compares. One number a training seed."""

    row: str
    metric: str
    """A metric's name (`difficulty/pearson_t0.60`), or the kind of a distance: that of the scale's detector."""
    name: str
    """What sentences call it: `R(0.6)`."""


@dataclass(frozen=True)
class Statement:
    """A finding of the paper as something that seeds can decide: `low` is lower than `high`."""

    text: str
    low: Value
    high: Value


@dataclass(frozen=True)
class PaperColumn:
    """Where the paper's numbers are: a table of `pforce.results.paper_table`."""

    table: str
    key: str | Sequence[str]
    """Column, or columns joined by a space, that `TableRow.paper` names."""
    value: str
    """Column of the numbers."""
    header: str
    """What our table calls it: `paper FID-10k`."""


@dataclass(frozen=True)
class Shown:
    """A column of our table beyond the usual ones."""

    metric: str
    header: str
    decimals: int = 3


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is."""

    name: ScaleName
    experiment: Callable[[], Experiment]
    """Makes the base experiment: a function of the experiments package."""
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of all cells."""
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Model sizes of `main`: name → fields; in the order of the paper's."""
    nfe: tuple[int, ...] = (24,)
    """NFE at which samplers are compared; the last is that of the statements."""
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Values of m, s, sigma and of λ."""
    about: str = ""
    """What it takes, in a line."""

    def base(self) -> Experiment:
        """The base experiment with the settings of the scale."""
        return with_fields(self.experiment(), self.settings)


@dataclass(frozen=True)
class Table:
    """One of the paper's tables or figures, or an ablation that it does not have."""

    name: str
    title: str
    question: str
    rows: Callable[[Scale], Sequence[TableRow]]
    statements: Callable[[Scale], Sequence[Statement]]
    metric: str = "fd"
    """What rows are ordered by."""
    paper: PaperColumn | None = None
    shown: tuple[Shown, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of all cells, over those of the scale."""
    scale_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of one scale, over all others."""
    figure: Figure = "bars"

    def base(self, scale: Scale) -> Experiment:
        """The base experiment of all cells."""
        changes = {**self.settings, **self.scale_settings.get(scale.name, {})}
        return with_fields(scale.base(), {**changes, "name": f"{self.name}-{scale.name}"})

    def check(self, scale: Scale) -> None:
        """FieldError where there are too many statements, or where one is about a row that is not there."""
        statements = self.statements(scale)
        require(len(statements) <= MOST_STATEMENTS, "statements", len(statements), f"at most {MOST_STATEMENTS} a table")
        names = [row.name for row in self.rows(scale)]
        for statement in statements:
            for value in (statement.low, statement.high):
                require(value.row in names, f"{self.name}: statement on row", value.row, f"one of {', '.join(names)}")


def metric_of(name: str, detector: str) -> str:
    """A metric's name; a distance is given by its kind: fd is `fid` with Inception, `fd/openmoji` with that one."""
    return str(MetricName(name, detector)) if name in DISTANCES else name
