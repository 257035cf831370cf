"""Tidy frames read from a storage's records: one row per finished cell of its sweeps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd

from pforce.records.cell import CellResult, result_of
from pforce.records.ledger import Ledger
from pforce.records.record import Record
from pforce.records.sweeps import CellEntry, SweepEntry, read_sweeps
from pforce.storage import Storage
from pforce.tracking.reading import numbers_where_all_are


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)


def storage_frame(
    storage: Storage, sweep: str | None = None, *, ledger: Ledger | None = None, say: Callable[[str], None] = _warn
) -> pd.DataFrame:
    """Finished and diverged cells (status FAILED) of a storage's sweeps, with the columns of
    `pforce.tracking.runs_frame`.

    A cell of several sweeps is a row for each; a cell of several versions of a sweep is one row. `origin` names the
    source of imported numbers.

    Args:
        sweep: name of one sweep; None reads all.
        ledger: ledger of the storage, where it was read already.
    """
    known = ledger or Ledger(storage, say)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    cache: dict[str, CellResult | None] = {}
    for entry in read_sweeps(storage, say, sweep):
        for cell in entry.cells:
            if cell.cell not in cache:
                cache[cell.cell] = result_of(cell, known)
            found = cache[cell.cell]
            if found is not None:
                rows[entry.name, cell.cell] = {**_about(entry, cell), **_row(found)}
    return numbers_where_all_are(pd.DataFrame(list(rows.values())))


def _about(entry: SweepEntry, cell: CellEntry) -> dict[str, Any]:
    return {
        "run_id": None,
        "run_name": cell.label,
        "sweep": entry.name,
        "fingerprint": cell.cell,
        "attempts": 1,
        **{name: str(value) for name, value in cell.params.items()},
    }


def _time(seconds: float) -> pd.Timestamp:
    return pd.Timestamp(round(1000 * seconds), unit="ms")


def _made(record: Record) -> dict[str, Any]:
    """Columns of the environment, from the record that took most of a row's time."""
    made = record.provenance
    return {
        "device": made.get("device"),
        "computed_in": made.get("precision"),
        "torch": made.get("version.torch"),
        "commit": made.get("commit"),
        "changes": made.get("changes"),
        "attention": made.get("attention"),
        "tf32": made.get("tf32"),
        "user": made.get("user", "unknown"),
        "origin": record.origin,  # of this record; a row joins those of all
    }


def _row(result: CellResult) -> dict[str, Any]:
    """Columns from a cell's result."""
    return {
        "status": result.status,
        "reason": result.reason,
        "start_time": _time(result.started),
        "end_time": _time(result.finished),
        "last_activity": _time(result.finished),
        "training": result.training,
        "trunk": result.trunk,
        "images_trained": result.images,
        **_made(result.made),
        "origin": result.origin,
        **result.metrics,
    }
