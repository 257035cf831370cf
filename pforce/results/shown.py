"""What runs show of the cells of a storage's sweeps, from its records and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pforce.base.files import write_bytes
from pforce.metrics.names import THROUGHPUT, CostName
from pforce.records.cell import CellResult, result_of
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, Request, decay_of
from pforce.records.row import tensors_of
from pforce.records.status import FAILED, FINISHED, KILLED, Status
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.storage import Storage
from pforce.storage.errors import StorageError
from pforce.tracking.page import Page, Progress, Shown
from pforce.tracking.view import USER, Point, Tags, View
from pforce.training.curve import CURVE
from pforce.training.loop import Record
from pforce.trial.draw import save_samples
from pforce.trial.folder import MAPS, SAMPLES, curve_of, evaluation_folder, training_folder

MAPS_PICTURE = "uncertainty_maps.png"
ENVIRONMENT = ("device", "precision", "workers", "threads", "sharding")
"""What a record says of its making and a run shows as tags of the same names."""
COMMIT = "mlflow.source.git.commit"


def milliseconds(seconds: float) -> int:
    """A time in milliseconds, from one in seconds."""
    return round(1000 * seconds)


def point_of(record: Record) -> Point:
    """A point of a loss curve, as runs show it."""
    values = {
        "train/loss": record.loss, "train/mse": record.mse, "train/nll": record.nll,
        "train/gradient_norm": record.gradient_norm, "train/learning_rate": record.learning_rate,
        "train/images_seen": float(record.images_seen), THROUGHPUT: record.images_per_second,
        CostName.DEVICE_HOURS: record.device_hours,
    }  # fmt: skip
    finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    return Point(record.images_seen, milliseconds(record.time), finite)


def view_of(cell: CellEntry, result: CellResult, storage: Storage, ledger: Ledger) -> View:
    """What the run of a cell that has ended shows."""
    made, parts = result.made.provenance, cell.parts()
    tags = {
        Tags.KIND: "trial", Tags.FINGERPRINT: cell.cell, Tags.SEED: str(cell.seed),
        **{name: value for name, value in made.items() if name.startswith("version.") or name in ENVIRONMENT},
        **{ours: made[theirs] for ours, theirs in ((COMMIT, "commit"), (USER, "user")) if theirs in made},
    }  # fmt: skip
    if cell.weights and parts is None:
        tags["model.sha256"] = cell.weights
    known = {
        Tags.TRAINING: result.training, Tags.TRUNK: result.trunk, Tags.ORIGIN: result.origin,
        Tags.REASON: result.reason, Tags.ERROR: result.error, Tags.NOTES: "; ".join(result.notes),
        "weights": "ema" if parts is not None else None,
    }  # fmt: skip
    tags |= {name: value for name, value in known.items() if value}
    return View(
        cell.label, tags, {name: str(value) for name, value in cell.params.items()}, result.metrics,
        parts.images_seen if parts is not None else 0, result.status, milliseconds(result.started),
        milliseconds(result.finished),
        points=lambda: curve_points(parts, storage, ledger.say, until=round(result.images)) if parts else (),
        files=lambda: pictures_of(storage, ledger, cell),
    )  # fmt: skip


def recorded_view(cell: CellEntry, storage: Storage, say: Callable[[str], None]) -> View | None:
    """What a cell's run shows, from what its records say now; None where it has not ended."""
    ledger = Ledger(storage, say)
    result = result_of(cell, ledger)
    return None if result is None else view_of(cell, result, storage, ledger)


def curve_points(
    parts: CellParts, storage: Storage, say: Callable[[str], None], *, until: int | None = None
) -> list[Point]:
    """The loss curve of a cell's training, as far as the storage has it.

    Args:
        until: images seen; those of the cell by default.
    """
    relative = training_folder(parts.training.digest)
    if storage.remote:
        branch = decay_of(parts.training)
        for folder in (relative, *([training_folder(branch[0])] if branch else [])):
            storage.pull(f"{folder}/{CURVE}")
    until = parts.images_seen if until is None else until
    return [point_of(record) for record in curve_of(storage.root / relative, parts.training, until=until, say=say)]


def pictures_of(storage: Storage, ledger: Ledger, cell: CellEntry) -> list[Path]:
    """Samples, and maps of uncertainty, of a cell: those that are there. Of an evaluation all that it left."""
    parts = cell.parts()
    if parts is None:
        folder = storage.root / "evaluations" / cell.cell
        _pulled(storage, folder, ledger)
        return sorted(path for path in folder.glob("*") if path.suffix in (".png", ".json"))
    folder = evaluation_folder(storage.root / training_folder(parts.training.digest), cell.cell)
    if not (folder / SAMPLES).exists():
        _pulled(storage, folder, ledger)
    _draw_maps(folder, ledger.say)
    found = [folder / name for name in (SAMPLES, MAPS_PICTURE) if (folder / name).exists()]
    if folder / SAMPLES not in found and parts.request.images and (known := tensors_of(parts, ledger)):
        picture = _samples(parts.request, known[0], storage, ledger, folder / SAMPLES)
        found = [*([picture] if picture else []), *found]
    return found


def _draw_maps(folder: Path, say: Callable[[str], None]) -> None:
    """Maps of predicted uncertainty on held-out images, drawn here: a trial's process loads no plotting library."""
    path = folder / MAPS_PICTURE
    if path.exists() or not (folder / MAPS).exists():
        return
    from pforce.results import difficulty_figures as figures  # matplotlib, which a plan does not need

    try:
        with np.load(folder / MAPS) as arrays:
            images, timesteps, sigma = arrays["images"], arrays["timesteps"], arrays["sigma"]
        if images.shape[1] == 3:
            by_time = {float(t): maps for t, maps in zip(timesteps, sigma, strict=True)}
            figures.uncertainty_maps(torch.from_numpy(images), by_time, path)
    except Exception as error:  # whatever a damaged file makes of a figure: the numbers are there
        say(f"{folder / MAPS}: cannot be drawn ({error}); it is left out")


def _pulled(storage: Storage, folder: Path, ledger: Ledger) -> None:
    """Out of a bucket: what was measured on another machine."""
    if storage.remote:
        try:
            storage.pull(folder.relative_to(storage.root).as_posix())
        except StorageError as error:  # the numbers are there, and count
            ledger.say(f"pictures are not shown in MLflow: {error}")


def _samples(request: Request, weights: str, storage: Storage, ledger: Ledger, path: Path) -> Path | None:
    """Samples of a cell that other commands had measured before: of the images that are kept, or as it was carried
    over."""
    if save_samples(storage, request.drawing(weights).digest, request.images, path):
        return path
    drawn = ledger.get(request.drawn(weights))
    sha256 = drawn.files.get(SAMPLES) if drawn else None
    kept = ledger.file(sha256) if sha256 else None
    if kept is None:
        return None
    write_bytes(path, kept.read_bytes())  # under the name that it is shown by
    return path


def views_of(cells: Sequence[CellEntry], storage: Storage, ledger: Ledger) -> dict[str, View]:
    """Digest → view, of those cells that have ended."""
    found = {}
    for cell in cells:
        try:
            result = result_of(cell, ledger)
            if result is not None:
                found[cell.cell] = view_of(cell, result, storage, ledger)
        except ValueError as error:  # a name that MLflow does not take; the others are shown
            ledger.say(f"{cell.label}: cannot be shown in MLflow: {error}")
    return found


def show_cells(
    page: Page, cells: Sequence[CellEntry], ledger: Ledger, parent: str, *, progress: Progress = lambda done: None
) -> Shown:
    """Have the runs of cells that have ended show what the storage holds of them.

    Args:
        parent: id of the sweep's own run.
    """
    views = views_of(cells, ledger.storage, ledger)
    return page.show({page.key(cell): view for cell, view in views.items()}, parent, progress=progress)


def sweep_tags(entry: SweepEntry) -> dict[str, str]:
    """Tags of a sweep's own run that its file tells."""
    return {Tags.KIND: "sweep", Tags.SWEEP: entry.identity, Tags.CELLS: str(len(entry.cells)),
            Tags.COMMAND: entry.command, USER: entry.user}  # fmt: skip


def show_sweep(
    page: Page, entry: SweepEntry, ledger: Ledger, *, files: Sequence[Path] | None = None, restore: bool = False,
    progress: Progress = lambda done: None,
) -> Shown:  # fmt: skip
    """Have a sweep's page show all of its cells that have ended. Its own run is made where it is not there; several
    that are a cell each, as evaluations are, have one together.

    Args:
        files: of its only cell, where they lie elsewhere.
    """
    views = views_of(entry.cells, ledger.storage, ledger)
    if not views or page.deleted:
        return Shown(deleted=len(views))
    if files is not None:
        views = {cell: view.with_files(files) for cell, view in views.items()}
    if entry.identity in views:
        entry = replace(entry, identity=entry.name)
    key, view = page.key(entry.identity), _own(entry, views)
    own = page.ensure({key: view}).get(key)
    if own is None:  # a person has just deleted the page
        return Shown(deleted=len(views))
    if own.deleted and restore:
        page.client.restore_run(own.run_id)
        own.deleted = False
    if view.status not in (own.status, KILLED) and not own.deleted:
        page.bring(own, view)  # its driver was killed before it could say that all has ended
    return page.show({page.key(cell): view for cell, view in views.items()}, own.run_id, restore=restore,
                     progress=progress)  # fmt: skip


def _own(entry: SweepEntry, views: Mapping[str, View]) -> View:
    """The run of a sweep that was never shown, or whose run is gone."""
    whole = len(views) == len({cell.cell for cell in entry.cells})
    good = all(view.status == FINISHED for view in views.values())
    status: Status = (FINISHED if good else FAILED) if whole else KILLED
    started = min(view.started for view in views.values())
    ended = max(view.ended or 0 for view in views.values())
    return View(entry.name, sweep_tags(entry), status=status, started=started, ended=ended)
