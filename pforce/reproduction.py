"""The paper's tables as data: rows, the paper's own numbers beside them, and the paper's claims about them.

A table consists of rows (changes to the base experiment), settings, and statements; a scale gives the base experiment,
its length and its seeds. `pforce_experiments.paper` defines all of them. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pforce.base.errors import require
from pforce.config import Experiment, with_fields
from pforce.metrics.names import DISTANCES, MEMORISATION, MetricName

MOST_STATEMENTS = 6
"""Most statements per table: with more, the correction for multiple tests finds nothing at an affordable number of
seeds."""

ScaleName = Literal["smoke", "cpu", "gpu-micro", "gpu", "paper"]
Figure = Literal["bars", "curves", "difficulty", "context_helps", "context_uncertainty", "none"]


@dataclass(frozen=True)
class TableRow:
    """A row of a table: a name and the fields that differ from the scale's base experiment."""

    name: str
    """Name of the row in the table."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path → value, as `pforce.config.with_fields` takes them."""
    paper: str | None = None
    """Name of the row of the paper's table that it is compared with."""


@dataclass(frozen=True)
class Value:
    """A number of a row, one per training seed, that statements compare."""

    row: str
    metric: str
    """A metric's name (`difficulty/pearson_t0.60`), or the kind of a distance, which is measured with the scale's
    detector."""
    name: str
    """Name in sentences: `R(0.6)`."""


@dataclass(frozen=True)
class Statement:
    """A finding of the paper in a form that seeds can decide: `low` is lower than `high`."""

    text: str
    low: Value
    high: Value


@dataclass(frozen=True)
class PaperColumn:
    """The paper's numbers beside ours: a column of a table of `pforce.results.paper_table`."""

    table: str
    key: str | Sequence[str]
    """Column, or columns joined by a space, that `TableRow.paper` names."""
    value: str
    """Column of the numbers."""
    header: str
    """Header in our table: `paper FID-10k`."""


@dataclass(frozen=True)
class Shown:
    """A column that a table has beyond the usual ones."""

    metric: str
    header: str
    decimals: int = 3


@dataclass(frozen=True)
class Scale:
    """The size of a reproduction."""

    name: ScaleName
    experiment: Callable[[], Experiment]
    """Function that makes the base experiment."""
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of all cells."""
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Model sizes of the table `main`: name → fields, in the order of the paper's sizes."""
    nfe: tuple[int, ...] = (24,)
    """NFE at which samplers are compared; statements use the last."""
    guidance: tuple[float, ...] = ()
    """Guidance scales at which samplers are compared besides, each at every NFE; statements use the last."""
    images: tuple[int, ...] = ()
    """Images seen before the end of the training, at which samplers are compared at the first NFE."""
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Values of m, s, sigma and of λ."""
    about: str = ""
    """One line on what the scale costs and shows."""

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
    """Metric by which rows are ordered."""
    paper: PaperColumn | None = None
    shown: tuple[Shown, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of all cells; they override the scale's."""
    scale_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Scale's name → fields of all cells at that scale; they override all others."""
    figure: Figure = "bars"

    def base(self, scale: Scale) -> Experiment:
        """The base experiment of all cells."""
        changes = {**self.settings, **self.scale_settings.get(scale.name, {})}
        return with_fields(scale.base(), {**changes, "name": f"{self.name}-{scale.name}"})

    def check(self, scale: Scale) -> None:
        """Raise FieldError where there are too many statements, or where one is about a missing row."""
        statements = self.statements(scale)
        require(
            len(statements) <= MOST_STATEMENTS, "statements", len(statements), f"at most {MOST_STATEMENTS} per table"
        )
        names = [row.name for row in self.rows(scale)]
        for statement in statements:
            for value in (statement.low, statement.high):
                require(value.row in names, f"{self.name}: statement on row", value.row, f"one of {', '.join(names)}")


def metric_of(name: str, detector: str) -> str:
    """A metric's full name. A distance is given by its kind: fd is `fid` with Inception, `fd/openmoji` with that
    detector."""
    return str(MetricName(name, detector)) if name in (*DISTANCES, *MEMORISATION) else name
