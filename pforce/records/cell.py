"""The result of a sweep's cell, read from its records: finished, diverged, or neither."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pforce.records.cost import Cost
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, Request
from pforce.records.record import Record
from pforce.records.row import BESIDE, DIVERGED_AT, WHY, divergence_of, drawn_of, joined, origin_of, row_of
from pforce.records.status import FAILED, FINISHED, Status
from pforce.records.sweeps import CellEntry


@dataclass(frozen=True)
class CellResult:
    """The result of a cell that has ended."""

    status: Status
    """FINISHED or FAILED."""
    started: float
    """Time of the start, in seconds since 1970; `finished` likewise."""
    finished: float
    metrics: dict[str, float]
    """Metrics by their fixed names; NaN where one is undefined."""
    made: Record
    """The record that gives device and versions: the weights' record of a training, else the first part's."""
    images: float
    """Images seen; NaN where nothing was trained."""
    origin: str | None = None
    """Source of the numbers that were not measured into this storage; None where all were."""
    training: str | None = None
    trunk: str | None = None
    reason: str | None = None
    error: str | None = None
    notes: Sequence[str] = ()


def result_of(cell: CellEntry, ledger: Ledger) -> CellResult | None:
    """A cell's result; None where a part is missing and the cell did not diverge."""
    parts = cell.parts()
    return _trained(parts, ledger) if parts is not None else _given(cell, ledger)


def _trained(parts: CellParts, ledger: Ledger) -> CellResult | None:
    row = row_of(parts, ledger)
    training, trunk = parts.training.digest, next(iter(parts.training.parents), None)
    if row is not None:
        return CellResult(
            FINISHED, row.started, row.finished, row.metrics, row.weights, float(parts.images_seen), row.origin,
            training, trunk, notes=row.notes,
        )  # fmt: skip
    record = divergence_of(parts, ledger)
    if record is None:
        return None
    at = record.numbers().get(DIVERGED_AT, float(parts.images_seen))
    return CellResult(
        FAILED, record.started, record.finished, {}, record, at, record.origin, training, trunk, "diverged",
        f"diverged at {at:,.0f} images seen: {record.values.get(WHY)}",
    )  # fmt: skip


def _given(cell: CellEntry, ledger: Ledger) -> CellResult | None:
    """The result of a cell of a given model or of given images."""
    if cell.digests:
        found = ledger.find(cell.digests)
        drawn, metrics = None, {name: value for each in cell.digests if each in found
                                for name, value in found[each].numbers().items()}  # fmt: skip
        wanted = set(cell.digests)
    else:
        request, weights = Request.from_plain(cell.request), cell.weights or ""
        wanted = {part.digest for part in request.parts(weights)}
        found, drawn = ledger.find(wanted), drawn_of(request, weights, ledger)
        metrics = joined(request, weights, found, drawn)
    if len(found) < len(wanted) or not found:
        return None
    metrics.pop(BESIDE, None)
    several = [*found.values(), *([drawn] if drawn else [])]
    metrics |= Cost.total(record.cost for record in several).evaluation_metrics()
    return CellResult(
        FINISHED, min(record.started for record in several), max(record.finished for record in several), metrics,
        several[0], math.nan, origin_of(several),
        notes=list(dict.fromkeys(note for record in found.values() for note in record.notes)),
    )  # fmt: skip
