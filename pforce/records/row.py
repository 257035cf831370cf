"""A row: what is known of a cell, its parts joined under their fixed names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pforce.metrics.held_out import shown_timesteps
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, Part, Request
from pforce.records.record import Record

DIVERGED_AT, WHY = "images_seen", "why"
"""Values of the record of a training that diverged: where it was found, and how it is told."""
TENSORS = "tensors"
"""Value of a weights record: the hash of the tensors."""
BESIDE = "data/held_out_images"
"""A value that is of one measurement, not of the row."""


class Row(NamedTuple):
    """A finished cell."""

    metrics: dict[str, float]
    """Under their fixed names; NaN where one is undefined."""
    weights: Record
    parts: list[Record]
    """Image metrics and held-out measurements, each once."""

    @property
    def finished(self) -> float:
        """When its last part was, seconds since 1970."""
        return max(record.finished for record in (self.weights, *self.parts))

    @property
    def started(self) -> float:
        """When its training began."""
        return min(record.started for record in (self.weights, *self.parts))

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know, each once."""
        return list(dict.fromkeys(note for record in self.parts for note in record.notes))


def tensors_of(cell: CellParts, ledger: Ledger) -> tuple[str, Record] | None:
    """The hash of a cell's weights and their record; None where they are not known."""
    record = ledger.get(cell.weights)
    if record is None or not isinstance(record.values.get(TENSORS), str):
        return None
    return str(record.values[TENSORS]), record


def divergence_of(cell: CellParts, ledger: Ledger) -> Record | None:
    """That the training of an unfinished cell diverged on the way to its images seen; None where that is not known."""
    record = ledger.get(cell.diverged)
    known = record is not None and record.numbers().get(DIVERGED_AT, math.nan) <= cell.images_seen
    return record if known else None


def row_of(cell: CellParts, ledger: Ledger) -> Row | None:
    """A cell's row; None where any of its parts is missing."""
    known = tensors_of(cell, ledger)
    if known is None:
        return None
    tensors, weights = known
    wanted = list(cell.request.parts(tensors))
    found = ledger.find(wanted)
    if len(found) < len({part.digest for part in wanted}):
        return None
    drawn = ledger.get(cell.request.drawn(tensors)) if cell.request.images else None
    metrics = joined(cell.request, tensors, found, drawn)
    metrics |= training_metrics(weights)
    evaluation = [*found.values(), *([drawn] if drawn else [])]
    metrics |= evaluation_costs(weights, evaluation)
    return Row(metrics, weights, list(found.values()))


def joined(
    request: Request, weights: str, found: Mapping[str, Record], drawn: Record | None = None
) -> dict[str, float]:
    """The numbers of a request's parts, in the order of tables. Of many timesteps calibration is shown at some only."""
    metrics: dict[str, float] = {}
    held_out = request.held_out_parts(weights)
    shown = {f"{time:.2f}" for time in shown_timesteps([float(time) for time in request.difficulty])}
    for (analysis, time), part in held_out.items():
        if part.digest not in found:
            continue
        for name, value in found[part.digest].numbers().items():
            hidden = analysis == "difficulty" and name.startswith("calibration/") and time not in shown
            if not hidden and name != BESIDE:
                metrics[name] = value
    for part in request.image_parts(weights).values():
        if part.digest in found:
            metrics |= found[part.digest].numbers()
    if drawn is not None:
        metrics |= drawn.numbers()
    return metrics


def training_metrics(weights: Record) -> dict[str, float]:
    """What a training took, up to these weights."""
    cost, seen = weights.cost, float(weights.identity["canonical"]["images_seen"])
    found = {"cost/images_seen": seen, "data/damaged_samples": weights.number("data/damaged_samples")}
    if cost.get("seconds"):
        found |= {"cost/training_seconds": cost["seconds"], "throughput/images_per_second": seen / cost["seconds"]}
    # Of a result that was carried over, its curve's last point.
    return found | {name: value for name, value in weights.numbers().items() if name.startswith("train/")}


def evaluation_costs(weights: Record, parts: Iterable[Record]) -> dict[str, float]:
    """Seconds and device-hours of a row: its training and its own parts, each second once."""
    several = {record.digest: record for record in parts}.values()
    seconds = sum(record.cost.get("seconds", 0.0) for record in several)
    devices = sum(record.cost.get("device_seconds", 0.0) for record in several)
    return {
        "cost/evaluation_seconds": seconds,
        "cost/seconds": weights.cost.get("seconds", 0.0) + seconds,
        "cost/device_hours": (weights.cost.get("device_seconds", 0.0) + devices) / 3600,
    }


def missing_of(cell: CellParts, ledger: Ledger) -> list[Part] | None:
    """The parts that a cell lacks; None where its weights are not known, so that all of it is missing."""
    known = tensors_of(cell, ledger)
    if known is None:
        return None
    there = ledger.find(cell.request.parts(known[0]))
    return [part for part in cell.request.parts(known[0]) if part.digest not in there]
