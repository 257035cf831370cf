"""The paper's tables as sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from pforce.orchestration.sweep import NamedRow, Sweep
from pforce.reproduction import Scale, Table


def sweep_name(table: Table, scale: Scale) -> str:
    """Name of the table's sweep, of its MLflow experiment and of its files."""
    return f"{table.name}-{scale.name}"


def sweep_of(table: Table, scale: Scale, seeds: Sequence[int] | None = None) -> Sweep:
    """A table at a scale as a sweep over its rows. ConfigError and FieldError where they do not fit together.

    Args:
        seeds: training seeds instead of the scale's.
    """
    table.check(scale)
    rows = tuple(NamedRow(row.name, row.changes) for row in table.rows(scale))
    return Sweep(sweep_name(table, scale), table.base(scale), (), tuple(seeds or scale.seeds), rows, known_by="name")
