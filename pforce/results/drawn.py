"""Outputs of a finished sampling job: files for evaluators, pictures of images and maps, an animation."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pforce.base.files import write_bytes, write_whole
from pforce.images import from_uint8, save_grid, to_uint8
from pforce.results.page import png
from pforce.trial.jobs import Job, drawn_batches

GRID_IMAGES = 64
SHOWN_PIXELS = 128
"""Smallest side of an image in pixels in the pictures of maps and in the animation."""

Told = Callable[[int], None]
"""Callback that gets the number of images that are done."""


def write_npz(job: Job, path: Path, told: Told = lambda done: None) -> None:
    """Write all images in the format of ADM's evaluator, `arr_0` uint8 (N, H, W, 3); latents as `latents`, float32 (N,
    C, H, W).

    `labels` holds the classes (N,). One batch is in memory at a time.
    """

    def write(scratch: Path) -> None:
        labels, done = [], 0
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            file = None
            for batch in drawn_batches(job, ("images", "latents", "labels")):
                key = "images" if "images" in batch else "latents"
                values = np.ascontiguousarray(batch[key])
                if file is None:
                    file = archive.open("arr_0.npy" if key == "images" else "latents.npy", "w", force_zip64=True)
                    described = {
                        "descr": np.lib.format.dtype_to_descr(values.dtype),
                        "fortran_order": False,
                        "shape": (job.count, *values.shape[1:]),
                    }
                    np.lib.format.write_array_header_1_0(file, described)
                file.write(values.tobytes())
                labels.append(batch["labels"])
                done += len(values)
                told(done)
            assert file is not None  # a job has at least one image
            file.close()
            with archive.open("labels.npy", "w") as other:
                np.lib.format.write_array(other, np.concatenate(labels))

    write_whole(path, write)


def write_maps(job: Job, path: Path) -> None:
    """Write all maps into one npz: `timesteps` and `sigma`, float32 (N, E, h, w), with E the number of function
    evaluations."""
    parts = list(drawn_batches(job, ("timesteps", "sigma")))
    named: dict[str, Any] = {
        key: np.concatenate([part[key] for part in parts]) for key in ("timesteps", "sigma") if key in parts[0]
    }

    def write(scratch: Path) -> None:
        with scratch.open("wb") as file:
            np.savez_compressed(file, **named)

    write_whole(path, write)


def write_images(job: Job, path: Path, told: Told = lambda done: None) -> None:
    """Write each image as `000000.png`, by its number, into a folder of their own; surplus images of a longer job are
    removed."""
    path.mkdir(parents=True, exist_ok=True)
    for surplus in path.glob("[0-9]*.png"):
        if not surplus.stem.isdigit() or int(surplus.stem) >= job.count:
            surplus.unlink()
    number = 0
    for batch in drawn_batches(job, ("images",)):
        for image in batch["images"]:
            file = io.BytesIO()
            Image.fromarray(image).save(file, format="PNG")
            write_bytes(path / f"{number:06d}.png", file.getvalue(), lasting=False)
            number += 1
        told(number)


def _first(job: Job, images: int) -> dict[str, NDArray[Any]]:
    """The arrays of a job's first images."""
    parts: list[dict[str, NDArray[Any]]] = []
    for batch in drawn_batches(job):
        parts.append(batch)
        if sum(len(part["labels"]) for part in parts) >= images:
            break
    return {key: np.concatenate([part[key] for part in parts])[:images] for key in parts[0]}


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    return from_uint8(torch.from_numpy(images)).permute(0, 3, 1, 2)


def write_grid(job: Job, path: Path, images: int = GRID_IMAGES) -> None:
    """Write the first images as one PNG, small ones enlarged."""
    drawn = _as_tensor(_first(job, images)["images"])
    save_grid(drawn, path, scale=max(1, SHOWN_PIXELS // 2 // drawn.shape[-1]))


def _coloured(values: NDArray[np.floating[Any]], low: float, high: float, name: str) -> NDArray[np.uint8]:
    """A map (…) in colours (…, 3) uint8."""
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    coloured: NDArray[np.uint8] = (mpl.colormaps[name](scaled)[..., :3] * 255).round().astype(np.uint8)
    return coloured


def maps_figure(images: Tensor, timesteps: Tensor, sigma: Tensor, path: Path, *, columns: int = 6) -> None:
    """Draw one row per image: the image, then σ (above) and the timesteps (below) at evaluations spread over the
    sampling.

    Args:
        images: images (B, 3, H, W) in [−1, 1].
        timesteps, sigma: maps (B, E, h, w).
    """
    evaluations = timesteps.shape[1]
    chosen = np.unique(np.linspace(0, evaluations - 1, min(columns, evaluations)).round().astype(int))
    rows, b = 2 * len(images), len(images)
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(1.05 * (len(chosen) + 1.15), 1.05 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, len(chosen) + 1, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
        # One scale per column: σ falls over time by more than it differs between patches.
        for i in range(b):
            axes[2 * i, 0].imshow(pixels[i], interpolation="nearest")
            axes[2 * i, 0].set_title("image" if i == 0 else "", fontsize=8)
            for column, evaluation in enumerate(chosen, start=1):
                at = sigma[:, evaluation]
                shown = axes[2 * i, column].imshow(
                    at[i], cmap="magma", vmin=float(at.min()), vmax=float(at.max()), interpolation="nearest"
                )
                axes[2 * i + 1, column].imshow(
                    timesteps[i, evaluation], cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
                )
                if i == 0:
                    axes[0, column].set_title(f"σ, evaluation {evaluation + 1}\n{shown.norm.vmin:.2f} … "
                                              f"{shown.norm.vmax:.2f}", fontsize=7)  # fmt: skip
                    axes[1, column].set_title("timesteps (0 … 1)" if column == 1 else "", fontsize=7)
        write_bytes(path, png(figure, dpi=140), lasting=False)


def animation(images: Tensor, timesteps: Tensor, sigma: Tensor, path: Path, *, seconds: float = 4.0) -> None:
    """Write a GIF with one frame per evaluation and one row per image: its state, its timesteps and its uncertainty
    side by side.

    Timesteps run from 0 (dark) to 1 (bright); σ is scaled to each evaluation's own range, bright where uncertain.

    Args:
        images: images after each evaluation, (B, E, 3, H, W).
        timesteps, sigma: maps (B, E, h, w).
        seconds: seconds of the animation before it rests on the last frame.
    """
    b, evaluations, _, height, width = images.shape
    scale, gap = max(1, -(-SHOWN_PIXELS // width)), 4
    tall, wide = height * scale, width * scale
    frames = []
    for e in range(evaluations):
        canvas = Image.new("RGB", (3 * wide + 2 * gap, b * tall + (b - 1) * gap), "white")
        at = sigma[:, e].numpy()
        panels = (
            to_uint8(images[:, e]).permute(0, 2, 3, 1).numpy(),
            _coloured(timesteps[:, e].numpy(), 0, 1, "viridis"),
            _coloured(at, float(at.min()), float(at.max()), "magma"),
        )
        for column, panel in enumerate(panels):
            for row, picture in enumerate(panel):
                tile = Image.fromarray(picture).resize((wide, tall), Image.Resampling.NEAREST)
                canvas.paste(tile, (column * (wide + gap), row * (tall + gap)))
        frames.append(canvas)
    milliseconds = [max(20, round(1000 * seconds / evaluations))] * (evaluations - 1) + [1500]

    def write(scratch: Path) -> None:
        frames[0].save(scratch, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)

    write_whole(path, write)
