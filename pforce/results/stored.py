"""A storage read back as tidy frames: a row per finished cell of its sweeps, from records."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, Request
from pforce.records.record import Record
from pforce.records.row import DIVERGED_AT, divergence_of, drawn_of, joined, origin_of, row_of, tensors_of
from pforce.records.sweeps import CellEntry, SweepEntry, read_sweeps
from pforce.storage import Storage
from pforce.tracking import Tags
from pforce.tracking.exchange import FinishedCell
from pforce.tracking.reading import numbers_where_all_are
from pforce.trial.draw import save_samples
from pforce.trial.folder import SAMPLES, evaluation_folder, training_folder

MAPS_PICTURE = "uncertainty_maps.png"


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)


def storage_frame(
    storage: Storage, sweep: str | None = None, *, ledger: Ledger | None = None, say: Callable[[str], None] = _warn
) -> pd.DataFrame:
    """Finished cells of a storage's sweeps, and those that diverged (status FAILED), with the columns of
    `pforce.tracking.runs_frame`.

    A cell that several sweeps have is a row of each; one that several versions of a sweep have is one row. `origin`
    says where imported numbers come from.

    Args:
        sweep: name of one sweep; None reads all.
        ledger: of the storage, where it was read already.
    """
    known = ledger or Ledger(storage, say)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    cache: dict[str, dict[str, Any] | None] = {}
    for entry in read_sweeps(storage, say, sweep):
        for cell in entry.cells:
            if cell.cell not in cache:
                cache[cell.cell] = _cell(cell, known)
            found = cache[cell.cell]
            if found is not None:
                rows[entry.name, cell.cell] = {**_about(entry, cell), **found}
    return numbers_where_all_are(pd.DataFrame(list(rows.values())))


def finished_cells(storage: Storage, ledger: Ledger) -> Iterator[FinishedCell]:
    """Finished cells of all sweeps that trained something, as runs show them, with their pictures."""
    for entry in read_sweeps(storage, ledger.say):
        for cell in entry.cells:
            parts = cell.parts()
            row = None if parts is None else row_of(parts, ledger)
            if parts is None or row is None:
                continue
            made = row.weights.provenance
            tags = {
                Tags.TRAINING: parts.training.digest, Tags.SEED: str(cell.seed), "weights": "ema",
                **{name: made[name] for name in made if name.startswith("version.") or name in TAGGED},
            }  # fmt: skip
            if parts.training.parents:
                tags[Tags.TRUNK] = parts.training.parents[0]
            if "commit" in made:
                tags["mlflow.source.git.commit"] = made["commit"]
            if row.origin:
                tags["origin"] = row.origin
            yield FinishedCell(
                entry.name, cell.label, cell.cell, {name: str(value) for name, value in cell.params.items()},
                row.metrics, tags, round(1000 * row.started), round(1000 * row.finished), parts.images_seen,
                pictures_of(storage, ledger, cell),
            )  # fmt: skip


TAGGED = ("device", "precision", "workers", "threads")


def pictures_of(storage: Storage, ledger: Ledger, cell: CellEntry) -> list[Path]:
    """Samples, and maps of uncertainty, of a cell: those that are there."""
    parts = cell.parts()
    if parts is None:
        return []
    folder = evaluation_folder(storage.root / training_folder(parts.training.digest), cell.cell)
    found = [folder / name for name in (SAMPLES, MAPS_PICTURE) if (folder / name).exists()]
    if folder / SAMPLES not in found and parts.request.images and (known := tensors_of(parts, ledger)):
        picture = _samples(parts.request, known[0], storage, ledger, folder / SAMPLES)
        found = [*([picture] if picture else []), *found]
    return found


def _samples(request: Request, weights: str, storage: Storage, ledger: Ledger, path: Path) -> Path | None:
    """Samples of a cell that other commands had measured before: of the images that are kept, or as it was carried
    over."""
    if save_samples(storage, request.drawing(weights).digest, request.images, path):
        return path
    drawn = ledger.get(request.drawn(weights))
    sha256 = drawn.files.get(SAMPLES) if drawn else None
    return ledger.file(sha256) if sha256 else None


def _about(entry: SweepEntry, cell: CellEntry) -> dict[str, Any]:
    return {
        "run_id": None,
        "run_name": cell.label,
        "status": "FINISHED",
        "sweep": entry.name,
        "fingerprint": cell.cell,
        "reason": None,
        "attempts": 1,
        **{name: str(value) for name, value in cell.params.items()},
    }


def _time(seconds: float) -> pd.Timestamp:
    return pd.Timestamp(round(1000 * seconds), unit="ms")


def _made(record: Record) -> dict[str, Any]:
    """What the environment columns show, of the record that most of a row's time went into."""
    made = record.provenance
    return {
        "device": made.get("device"),
        "computed_in": made.get("precision"),
        "torch": made.get("version.torch"),
        "commit": made.get("commit"),
        "user": made.get("user", "unknown"),
        "origin": record.origin,  # of this record; a row joins those of all
    }


def _diverged(parts: CellParts, ledger: Ledger) -> dict[str, Any] | None:
    """The row of a cell whose training diverged; None of any other that is not finished."""
    record = divergence_of(parts, ledger)
    if record is None:
        return None
    return {
        "status": "FAILED",
        "reason": "diverged",
        "start_time": _time(record.started),
        "end_time": _time(record.finished),
        "last_activity": _time(record.finished),
        "training": parts.training.digest,
        "images_trained": record.numbers().get(DIVERGED_AT, float(parts.images_seen)),
        **_made(record),
    }


def _cell(cell: CellEntry, ledger: Ledger) -> dict[str, Any] | None:
    """The row of a cell; None where any of its parts is missing and it did not diverge."""
    parts = cell.parts()
    if parts is not None:
        row = row_of(parts, ledger)
        if row is None:
            return _diverged(parts, ledger)
        return {
            "start_time": _time(row.started),
            "end_time": _time(row.finished),
            "last_activity": _time(row.finished),
            "training": parts.training.digest,
            "trunk": next(iter(parts.training.parents), None),
            "images_trained": float(parts.images_seen),
            **_made(row.weights),
            "origin": row.origin,
            **row.metrics,
        }
    request, weights = Request.from_plain(cell.request), cell.weights or ""
    wanted = {part.digest for part in request.parts(weights)}
    found = ledger.find(wanted)
    if len(found) < len(wanted) or not found:
        return None
    drawn = drawn_of(request, weights, ledger)
    several = [*found.values(), *([drawn] if drawn else [])]
    return {
        "start_time": _time(min(record.started for record in several)),
        "end_time": _time(max(record.finished for record in several)),
        "last_activity": _time(max(record.finished for record in several)),
        "training": None,
        "images_trained": math.nan,
        **_made(several[0]),
        "origin": origin_of(several),
        **joined(request, weights, found, drawn),
        "cost/evaluation_seconds": sum(record.cost.get("seconds", 0.0) for record in several),
    }
