"""Views of the cells of a storage's sweeps for MLflow runs, from records and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pforce.base.arrays import open_arrays
from pforce.base.files import read_whole, write_bytes
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

MAPS_PICTURE, NEAREST_PAIRS = "uncertainty_maps.png", "nearest_training_images.png"
ENVIRONMENT = ("device", "precision", "workers", "threads", "sharding")
"""Entries of a record's provenance that a run shows as tags of the same names."""
COMMIT = "mlflow.source.git.commit"


def milliseconds(seconds: float) -> int:
    """A time in seconds as whole milliseconds."""
    return round(1000 * seconds)


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
    finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    return Point(record.images_seen, milliseconds(record.time), finite)


def view_of(cell: CellEntry, result: CellResult, storage: Storage, ledger: Ledger) -> View:
    """The view of a cell that has ended."""
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


def pictures_of(storage: Storage, ledger: Ledger, cell: CellEntry) -> list[Path]:
    """Existing pictures of a cell: samples and maps of uncertainty; for an evaluation, all its pictures and JSON
    files."""
    parts = cell.parts()
    if parts is None:
        folder = storage.root / "evaluations" / cell.cell
        _pulled(storage, folder, ledger)
        return sorted(path for path in folder.glob("*") if path.suffix in (".png", ".json"))
    folder = evaluation_folder(storage.root / training_folder(parts.training.digest), cell.cell)
    if not (folder / SAMPLES).exists():
        _pulled(storage, folder, ledger)
    _draw_maps(folder, ledger.say)
    known = tensors_of(parts, ledger)
    if known and not (folder / NEAREST_PAIRS).exists():
        _draw_nearest(parts.request, known[0], ledger, folder / NEAREST_PAIRS)
    found = [folder / name for name in (SAMPLES, MAPS_PICTURE, NEAREST_PAIRS) if (folder / name).exists()]
    if folder / SAMPLES not in found and parts.request.images and known:
        picture = _samples(parts.request, known[0], storage, ledger, folder / SAMPLES)
        found = [*([picture] if picture else []), *found]
    return found


def _draw_maps(folder: Path, say: Callable[[str], None]) -> None:
    """Draw maps of predicted uncertainty on held-out images, unless there is a picture; a worker does not, as it loads
    no plotting library."""
    path = folder / MAPS_PICTURE
    if path.exists() or not (folder / MAPS).exists():
        return
    from pforce.results import difficulty_figures as figures  # matplotlib, which a plan does not need

    try:
        with open_arrays(folder / MAPS) as arrays:
            found = arrays.read_all((folder / MAPS).stat().st_size)
        images, timesteps, sigma = found["images"], found["timesteps"], found["sigma"]
        if images.shape[1] == 3:
            by_time = {float(t): maps for t, maps in zip(timesteps, sigma, strict=True)}
            figures.uncertainty_maps(torch.from_numpy(images), by_time, path)
    except Exception as error:  # whatever a damaged file causes: the numbers are there
        say(f"{folder / MAPS}: cannot be drawn ({error}); it is left out")


def _draw_nearest(request: Request, weights: str, ledger: Ledger, path: Path) -> None:
    """Draw the nearest pairs of generated and training images, where they were looked for."""
    if not request.needs_pixels:
        return
    from pforce.results.nearest_figure import nearest_of, pairs_figure  # matplotlib, which a plan does not need

    near = nearest_of(ledger, request.image_parts(weights).values())
    if near is not None:
        pairs_figure(near, request.detector["name"], path)


def _pulled(storage: Storage, folder: Path, ledger: Ledger) -> None:
    """Pull a folder from a bucket, for measurements of other machines."""
    if storage.remote:
        try:
            storage.pull(folder.relative_to(storage.root).as_posix())
        except StorageError as error:  # the numbers are there and count
            ledger.say(f"pictures are not shown in MLflow: {error}")


def _samples(request: Request, weights: str, storage: Storage, ledger: Ledger, path: Path) -> Path | None:
    """Picture of samples of a cell that was measured before, from kept images or from a migrated record; None where
    there are none."""
    if save_samples(storage, request.drawing(weights).digest, request.images, path):
        return path
    drawn = ledger.get(request.drawn(weights))
    sha256 = drawn.files.get(SAMPLES) if drawn else None
    kept = ledger.file(sha256) if sha256 else None
    if kept is None:
        return None
    write_bytes(path, read_whole(kept))  # under the name by which it is shown
    return path


def views_of(cells: Sequence[CellEntry], storage: Storage, ledger: Ledger) -> dict[str, View]:
    """Digest → view, for those cells that have ended."""
    found = {}
    for cell in cells:
        try:
            result = result_of(cell, ledger)
            if result is not None:
                found[cell.cell] = view_of(cell, result, storage, ledger)
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


def show_sweep(
    page: Page, entry: SweepEntry, ledger: Ledger, *, files: Sequence[Path] | None = None, restore: bool = False,
    progress: Progress = lambda done: None,
) -> Shown:  # fmt: skip
    """Bring a sweep's page up to date with all its ended cells. The sweep's own run is made where it is missing; sweeps
    of one cell each, such as evaluations, share one.

    Args:
        files: files of its only cell, where they are elsewhere.
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
        page.bring(own, view)  # its driver was killed before it could report the end
    return page.show({page.key(cell): view for cell, view in views.items()}, own.run_id, restore=restore,
                     progress=progress)  # fmt: skip


def _own(entry: SweepEntry, views: Mapping[str, View]) -> View:
    """The view of a sweep itself, where it was never shown or its run is gone."""
    whole = len(views) == len({cell.cell for cell in entry.cells})
    good = all(view.status == FINISHED for view in views.values())
    status: Status = (FINISHED if good else FAILED) if whole else KILLED
    started = min(view.started for view in views.values())
    ended = max(view.ended or 0 for view in views.values())
    return View(entry.name, sweep_tags(entry), status=status, started=started, ended=ended)
