"""Views of the cells of a storage's sweeps for MLflow runs, from records and files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from pforce.metrics.names import THROUGHPUT, CostName, headline
from pforce.records.cell import CellResult, result_of
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, decay_of
from pforce.records.status import FINISHED
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.results.pictures import files_of, milliseconds, pictures_along, snapshots_before
from pforce.storage import Storage
from pforce.tracking.page import Page, Progress, Shown
from pforce.tracking.view import USER, DataSet, Point, Tags, View
from pforce.training.curve import CURVE
from pforce.training.usage import Used
from pforce.training.window import Record
from pforce.trial.folder import curve_of, training_folder

GIBIBYTE = float(1 << 30)
DIGEST_LENGTH = 32
"""Characters of a data set's hash that MLflow's column holds."""
NUMBERS = "numbers.json"
"""Table of a run with all numbers of its cell that are no headline metrics."""
ENVIRONMENT = ("device", "precision", "workers", "threads", "sharding", "attention", "host_type", "driver", "container")
"""Entries of a record's provenance that a run shows as tags of the same names."""
NOT_ALONG = ("cost/", "train/", "throughput/", "data/")
"""Beginnings of the names of headline metrics that say nothing of a snapshot's quality."""
MOST_WORKERS = 8
"""Most workers of a training that a run shows one by one; of more it shows the nodes only."""
COMMIT, UNCOMMITTED = "mlflow.source.git.commit", "git.uncommitted_changes"


def point_of(record: Record) -> Point:
    """A point of a loss curve as runs show it."""
    values = {
        "train/loss": record.loss, "train/mse": record.mse, "train/nll": record.nll,
        "train/gradient_norm": record.gradient_norm, "train/learning_rate": record.learning_rate,
        "train/images_seen": float(record.images_seen), THROUGHPUT: record.images_per_second,
        CostName.DEVICE_HOURS: record.device_hours,
    }  # fmt: skip
    if record.modulation_nodes:
        values |= {"train/modulation_error": record.modulation_error}
    values |= _system(record)
    finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    return Point(record.images_seen, milliseconds(record.time), finite)


def _system(record: Record) -> dict[str, float]:
    """What a training used up to a point: of its first worker; where there are several, of each and of their nodes."""
    values = {}
    if record.peak_memory:
        values = _used("system", record)
    if record.mfu:
        values["system/mfu"] = record.mfu
    workers = record.workers or ()
    if len(workers) <= MOST_WORKERS:
        for rank, (_, *used) in enumerate(workers):
            values |= _used(f"system/worker_{rank}", Used(*used))
    by_node: dict[int, list[Used]] = {}
    for node, *used in workers:
        by_node.setdefault(int(node), []).append(Used(*used))
    for node, of in by_node.items():
        n = len(of)
        values |= _used(f"system/node_{node}", Used(
            sum(each.data_wait for each in of) / n, sum(each.cores for each in of),
            sum(each.peak_memory for each in of), sum(each.peak_device_memory for each in of),
            sum(each.device_use for each in of) / n,
        ))  # fmt: skip
    return values


def _used(prefix: str, used: Record | Used) -> dict[str, float]:
    """Metrics of what was used."""
    values = {
        "data_wait_share": used.data_wait, "cores": used.cores, "peak_memory_gib": used.peak_memory / GIBIBYTE,
    }  # fmt: skip
    if used.peak_device_memory:
        values |= {"peak_gpu_memory_gib": used.peak_device_memory / GIBIBYTE, "gpu_use_share": used.device_use}
    return {f"{prefix}/{name}": value for name, value in values.items()}


def view_of(
    cell: CellEntry, result: CellResult, storage: Storage, ledger: Ledger, before: Sequence[CellEntry] = ()
) -> View:
    """The view of a cell that has ended.

    Args:
        before: ended cells of its training's snapshots, whose pictures it has, too.
    """
    made, parts = result.made.provenance, cell.parts()
    tags = {
        Tags.KIND: "trial", Tags.FINGERPRINT: cell.cell, Tags.SEED: str(cell.seed),
        **{name: value for name, value in made.items() if name.startswith("version.") or name in ENVIRONMENT},
        **{ours: made[theirs] for ours, theirs in ((COMMIT, "commit"), (USER, "user")) if theirs in made},
    }  # fmt: skip
    if COMMIT in tags:
        tags[UNCOMMITTED] = str("changes" in made)
    if cell.weights and parts is None:
        tags["model.sha256"] = cell.weights
    known = {
        Tags.TRAINING: result.training, Tags.TRUNK: result.trunk, Tags.ORIGIN: result.origin,
        Tags.REASON: result.reason, Tags.ERROR: result.error, Tags.NOTES: "; ".join(result.notes),
        "weights": "ema" if parts is not None else None,
        Tags.SNAPSHOTS: " ".join(str(each.images_seen) for each in before), **_inputs_of(parts),
    }  # fmt: skip
    tags |= {name: value for name, value in known.items() if value}
    chosen = headline(result.metrics)
    view = View(
        cell.label, tags, {name: str(value) for name, value in cell.params.items()},
        {name: result.metrics[name] for name in chosen},
        parts.images_seen if parts is not None else 0, result.status, milliseconds(result.started),
        milliseconds(result.finished),
        points=lambda: curve_points(parts, storage, ledger.say, until=round(result.images)) if parts else (),
        files=lambda: files_of(storage, ledger, cell, before),
        pictures=lambda: pictures_along(storage, ledger, cell, before), data=data_of(cell, parts),
        before=[point for each in before if (point := _measured_at(each, ledger)) is not None],
    )  # fmt: skip
    others = [(name, plain_number(value)) for name, value in result.metrics.items() if name not in chosen]
    return view.with_table(NUMBERS, ("metric", "value"), others) if others else view


def _measured_at(snapshot: CellEntry, ledger: Ledger) -> Point | None:
    """The quality of a training's snapshot, as a point of the training's own run."""
    result = result_of(snapshot, ledger)
    if result is None:
        return None
    chosen = [name for name in headline(result.metrics) if not name.startswith(NOT_ALONG)]
    values = {name: result.metrics[name] for name in chosen if math.isfinite(result.metrics[name])}
    return Point(snapshot.images_seen, milliseconds(result.finished), values)


def _inputs_of(parts: CellParts | None) -> dict[str, str]:
    """Hashes of what a trained cell was made from and measured with, as tags."""
    if parts is None:
        return {}
    kind, _, reference = parts.request.reference.partition(":")
    found = {"data": parts.training.canonical.get("data", {}).get("manifest"),
             "detector": parts.request.detector.get("sha256"),
             "reference": reference if kind == "file" else None}  # fmt: skip
    return {f"input.{name}": str(value) for name, value in found.items() if value}


def data_of(cell: CellEntry, parts: CellParts | None) -> DataSet | None:
    """The data set of a cell's training, by the hash of its manifest; None where nothing was trained."""
    manifest = parts.training.canonical.get("data", {}).get("manifest") if parts is not None else None
    if not isinstance(manifest, str):
        return None
    about = {name: cell.params.get(f"data.{name}") for name in ("name", "resolution")}
    name = f"{about['name']} {about['resolution']}"
    return DataSet(name, manifest[:DIGEST_LENGTH], json.dumps({**about, "manifest": manifest}))


def plain_number(value: float) -> float | str:
    """A number as JSON has it: one that is not finite as text."""
    return value if math.isfinite(value) else str(value)


def recorded_view(cell: CellEntry, storage: Storage, say: Callable[[str], None]) -> View | None:
    """The view of a cell from its present records; None where the cell has not ended."""
    ledger = Ledger(storage, say)
    result = result_of(cell, ledger)
    return None if result is None else view_of(cell, result, storage, ledger)


def curve_points(
    parts: CellParts, storage: Storage, say: Callable[[str], None], *, until: int | None = None
) -> list[Point]:
    """The loss curve of a cell's training, as far as the storage has it.

    Args:
        until: images seen up to which points are read; by default the cell's.
    """
    relative = training_folder(parts.training.digest)
    if storage.remote:
        branch = decay_of(parts.training)
        for folder in (relative, *([training_folder(branch[0])] if branch else [])):
            storage.pull(f"{folder}/{CURVE}")
    until = parts.images_seen if until is None else until
    return [point_of(record) for record in curve_of(storage.root / relative, parts.training, until=until, say=say)]


def views_of(cells: Sequence[CellEntry], storage: Storage, ledger: Ledger) -> dict[str, View]:
    """Digest → view, for those cells that have ended."""
    results, found = {}, {}
    for cell in cells:
        result = result_of(cell, ledger)
        if result is not None:
            results[cell.cell] = result
    ended = [cell for cell in cells if cell.cell in results]
    snapshots = snapshots_before([cell for cell in ended if results[cell.cell].status == FINISHED])
    for cell in ended:
        try:
            found[cell.cell] = view_of(cell, results[cell.cell], storage, ledger, snapshots.get(cell.cell, ()))
        except ValueError as error:  # a name that MLflow does not accept; the others are shown
            ledger.say(f"{cell.label}: cannot be shown in MLflow: {error}")
    return found


def show_cells(
    page: Page, cells: Sequence[CellEntry], ledger: Ledger, parent: str, *, progress: Progress = lambda done: None
) -> Shown:
    """Bring the runs of ended cells up to date with the storage.

    Args:
        parent: id of the sweep's own run.
    """
    views = views_of(cells, ledger.storage, ledger)
    return page.show({page.key(cell): view for cell, view in views.items()}, parent, progress=progress)


def sweep_tags(entry: SweepEntry) -> dict[str, str]:
    """Tags of a sweep's own run, from its file."""
    return {Tags.KIND: "sweep", Tags.SWEEP: entry.identity, Tags.CELLS: str(len(entry.cells)),
            Tags.COMMAND: entry.command, USER: entry.user}  # fmt: skip
