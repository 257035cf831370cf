"""The row of a cell: the results of its parts, joined under their fixed names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from pforce.metrics.held_out import shown_timesteps
from pforce.metrics.names import CALIBRATION, CURVE_POINT, DAMAGED_SAMPLES, HELD_OUT_IMAGES, CostName, MetricName
from pforce.records.cost import Cost
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, Part, Request, decay_of, diverged_part
from pforce.records.record import Record

DIVERGED_AT, WHY = "images_seen", "why"
"""Names of the values in the record of a divergence: the images seen at which it was found, and the reason."""
TENSORS = "tensors"
"""Name of the value in a weights record that holds the hash of the tensors."""
BESIDE = HELD_OUT_IMAGES
"""Name of a value that belongs to one measurement, not to the row."""


class Row(NamedTuple):
    """The row of a finished cell."""

    metrics: dict[str, float]
    """Metrics by their fixed names; NaN where one is undefined."""
    weights: Record
    parts: list[Record]
    """Records of image metrics and held-out measurements, each once."""

    drawn: Record | None = None
    """Record of the drawing, with its cost."""

    @property
    def origin(self) -> str | None:
        """Source of the numbers that were not measured into this storage; None where all were."""
        return origin_of((self.weights, *self.parts, *([self.drawn] if self.drawn else [])))

    @property
    def finished(self) -> float:
        """Time at which the last part finished, in seconds since 1970."""
        return max(record.finished for record in (self.weights, *self.parts))

    @property
    def started(self) -> float:
        """Time at which the first part started, in seconds since 1970."""
        return min(record.started for record in (self.weights, *self.parts))

    @property
    def notes(self) -> list[str]:
        """Notes for readers of the numbers, each once."""
        return list(dict.fromkeys(note for record in self.parts for note in record.notes))


def origin_of(records: Iterable[Record]) -> str | None:
    """Sources of a row's numbers that were not measured into this storage; None where all were."""
    return "; ".join(dict.fromkeys(record.origin for record in records if record.origin)) or None


def tensors_of(cell: CellParts, ledger: Ledger) -> tuple[str, Record] | None:
    """The hash of a cell's weights and their record; None where they are not known."""
    record = ledger.get(cell.weights)
    if record is None or not isinstance(record.values.get(TENSORS), str):
        return None
    return str(record.values[TENSORS]), record


def divergence_of(cell: CellParts, ledger: Ledger) -> Record | None:
    """The record of an unfinished cell's divergence: of its training before the cell's images seen, or, where its
    weights are known, of a missing measurement. None where there is none."""
    known = tensors_of(cell, ledger)
    if known is None:
        # The record that finished first is not always the one with the fewest images, which counts.
        limits = {cell.diverged.digest: cell.images_seen}
        if (branch := decay_of(cell.training)) is not None:
            limits[diverged_part(branch[0]).digest] = branch[1]
        found = [
            (record.numbers().get(DIVERGED_AT, math.nan), limit, record)
            for digest, limit in limits.items() for record in ledger.several(digest)
        ]  # fmt: skip
        reached = [(at, record) for at, limit, record in found if at <= limit]
        return min(reached, key=lambda each: each[0])[1] if reached else None
    wanted = cell.request.held_out_parts(known[0]).values()
    there = ledger.find([diverged_part(part.digest) for part in wanted if ledger.get(part) is None])
    return next(iter(there.values()), None)


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
    drawn = drawn_of(cell.request, tensors, ledger)
    metrics = joined(cell.request, tensors, found, drawn)
    metrics |= training_metrics(weights)
    evaluation = [*found.values(), *([drawn] if drawn else [])]
    metrics |= evaluation_costs(weights, evaluation)
    return Row(metrics, weights, list(found.values()), drawn)


def drawn_of(request: Request, weights: str, ledger: Ledger) -> Record | None:
    """The record of a drawing with the cost of all shares of it; None where nothing is drawn or there is no record."""
    found = ledger.several(request.drawn(weights).digest) if request.images else []
    if not found:
        return None
    return replace(found[0], cost=Cost.total(record.cost for record in found).plain())


def joined(
    request: Request, weights: str, found: Mapping[str, Record], drawn: Record | None = None
) -> dict[str, float]:
    """The numbers of a request's parts, in the order of tables. Where there are many timesteps, only some show
    calibration."""
    metrics: dict[str, float] = {}
    held_out = request.held_out_parts(weights)
    shown = {f"{time:.2f}" for time in shown_timesteps([float(time) for time in request.difficulty])}
    for (_, time), part in held_out.items():
        if part.digest not in found:
            continue
        for text, value in found[part.digest].numbers().items():
            name = MetricName.parse(text)
            hidden = name is not None and name.kind in CALIBRATION and time not in shown
            if not hidden and text != BESIDE:
                metrics[text] = value
    for part in request.image_parts(weights).values():
        if part.digest in found:
            metrics |= found[part.digest].numbers()
    if drawn is not None:
        metrics |= drawn.numbers()
    return metrics


def training_metrics(weights: Record) -> dict[str, float]:
    """Metrics of a training up to these weights, including its cost."""
    seen = float(weights.identity["canonical"]["images_seen"])
    found = {CostName.IMAGES_SEEN: seen, DAMAGED_SAMPLES: weights.number(DAMAGED_SAMPLES)}
    found |= Cost.of(weights.cost).training_metrics(seen)
    # A migrated result also has its curve's last point.
    return found | {name: value for name, value in weights.numbers().items() if name in CURVE_POINT}


def evaluation_costs(weights: Record, parts: Iterable[Record]) -> dict[str, float]:
    """Seconds and device-hours of a row: of its training and its own parts, each second counted once."""
    several = {record.digest: record for record in parts}.values()
    evaluation = Cost.total(record.cost for record in several)
    return evaluation.evaluation_metrics() | (Cost.of(weights.cost) + evaluation).metrics()


def missing_of(cell: CellParts, ledger: Ledger) -> list[Part] | None:
    """The missing parts of a cell; None where its weights are not known, so that all of its parts are missing."""
    known = tensors_of(cell, ledger)
    if known is None:
        return None
    there = ledger.find(cell.request.parts(known[0]))
    return [part for part in cell.request.parts(known[0]) if part.digest not in there]
