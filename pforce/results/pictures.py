"""Pictures of cells: samples and maps of uncertainty at the end and along the training, and the training as an
animation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from pforce.base.arrays import open_arrays
from pforce.base.files import digest, read_whole, write_bytes, write_whole
from pforce.images import open_picture
from pforce.records.ledger import Ledger
from pforce.records.parts import Request
from pforce.records.row import tensors_of
from pforce.records.sweeps import CellEntry
from pforce.storage import Storage
from pforce.storage.errors import StorageError
from pforce.tracking.view import Picture
from pforce.trial.draw import save_samples
from pforce.trial.failures import is_disk_full
from pforce.trial.folder import MAPS, SAMPLES, evaluation_folder, training_folder

MAPS_PICTURE, NEAREST_PAIRS = "uncertainty_maps.png", "nearest_training_images.png"
MAPS_KEY = "uncertainty"
"""Key of the maps of uncertainty among the pictures that MLflow compares side by side."""
ANIMATION = "training.gif"
LEAST_FRAMES = 2
FRAME_MILLISECONDS, LAST_MILLISECONDS = 700, 2500
CAPTION_PIXELS = 16


def milliseconds(seconds: float) -> int:
    """A time in seconds as whole milliseconds."""
    return round(1000 * seconds)


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


def pictures_along(
    storage: Storage, ledger: Ledger, cell: CellEntry, before: Sequence[CellEntry] = ()
) -> list[Picture]:  # fmt: skip
    """Samples and maps of uncertainty of a training up to a cell, one of each per images seen: of the cell, and of its
    training's snapshots, whose samples start from the same noise.

    Args:
        before: cells of the snapshots; see `snapshots_before`.
    """
    samples = samples_key(cell.params.get("sampler.guidance.scale", 1.0))
    keys = {SAMPLES: samples, MAPS_PICTURE: MAPS_KEY, NEAREST_PAIRS: "nearest training images"}
    found = []
    for each in (*before, cell):
        parts = each.parts()
        record = None if parts is None else ledger.get(parts.weights)
        if record is not None:
            at_time, paths = milliseconds(record.finished), pictures_of(storage, ledger, each)
            found += [Picture(keys[path.name], each.images_seen, at_time, path) for path in paths]
    return found


def snapshots_before(cells: Sequence[CellEntry]) -> dict[str, list[CellEntry]]:
    """Digest of a cell → cells of the same training, measured in the same way at fewer images, by images seen."""
    found: dict[str, list[CellEntry]] = {}
    for cell in cells:
        parts = cell.parts()
        if parts is not None:
            key = digest("snapshots", [parts.training.digest, dict(cell.request)])
            found.setdefault(key, []).append(cell)
    ordered = (sorted(same, key=lambda cell: cell.images_seen) for same in found.values() if len(same) > 1)
    return {cell.cell: same[:place] for same in ordered for place, cell in enumerate(same) if place}


def samples_key(guidance: object) -> str:
    """Name of the samples among a run's pictures, with the guidance scale: without guidance, small models look worse
    than they are."""
    return f"samples at guidance {guidance}"


def files_of(storage: Storage, ledger: Ledger, cell: CellEntry, before: Sequence[CellEntry] = ()) -> list[Path]:
    """Files of a cell's run: its pictures, and its training as an animation where there are snapshots.

    Args:
        before: as for `pictures_along`.
    """
    files = pictures_of(storage, ledger, cell)
    frames = [each for each in pictures_along(storage, ledger, cell, before) if each.path.name == SAMPLES]
    path = files[0].parent / ANIMATION if files else None
    if path is None or len(frames) < LEAST_FRAMES:
        return files
    try:
        _animate([(each.path, f"{each.step:,} images seen") for each in frames], path)
    except (OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        ledger.say(f"{path}: not drawn: {error}")
        return files
    return [*files, path]


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
        if is_disk_full(error):
            raise  # its run is not complete, and is completed once there is room
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


def _animate(frames: Sequence[tuple[Path, str]], path: Path) -> None:
    """Write pictures, as (file, caption), one after the other as a GIF."""
    drawn = []
    for file, caption in frames:
        with open_picture(file) as opened:
            picture = opened.convert("RGB")
        frame = Image.new("RGB", (picture.width, picture.height + CAPTION_PIXELS), "white")
        frame.paste(picture, (0, CAPTION_PIXELS))
        ImageDraw.Draw(frame).text((4, 2), caption, fill="black")
        drawn.append(frame)
    times = [*[FRAME_MILLISECONDS] * (len(drawn) - 1), LAST_MILLISECONDS]

    def write(temporary: Path) -> None:
        drawn[0].save(
            temporary, format="GIF", save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=False
        )

    write_whole(path, write)
