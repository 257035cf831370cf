"""Measure whether the predicted uncertainty is higher where there is something to draw.

All patches of held-out drawings are at one timestep. Patches with strokes (their pixels differ) are compared with flat
background (all pixels have the background's colour); plain coloured areas are neither. The result is the mean over
images of the mean σ on strokes minus the mean σ on background, with its 95 % bootstrap interval, and a picture of ten
maps.

    python analysis/uncertainty_of_strokes.py MODEL        # a trial's folder, a run id, best:SWEEP, a model file
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from pforce import catalog, grid, seeding
from pforce.base.console import exit_on_errors
from pforce.base.errors import ConfigError
from pforce.data import ensure, read_split
from pforce.images import from_uint8
from pforce.metrics.difficulty import patch_errors
from pforce.models import PatchForcingTransformer
from pforce.orchestration.find import find_model
from pforce.storage import default_storage

CONTRAST = 0.2
"""Smallest range of a channel (of −1 … 1) within a patch that has strokes."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Arguments:
    """Compare the mean σ on patches with strokes and on flat background."""

    model: Annotated[str, tyro.conf.Positional]
    """A trial's folder, a checkpoint or model file, an MLflow run id, an experiment, or best:SWEEP."""
    data: str = "openmoji32_micro"
    """Experiment whose held-out images are used, for models that do not name one."""
    images: int = 447
    """Number of held-out images."""
    time: float = 0.5
    """Timestep of all patches."""
    storage: str = field(default_factory=default_storage)
    """Folder or bucket of the sweeps' files. Default: $PFORCE_STORAGE, else runs."""
    tracking_uri: str | None = None
    """MLflow store. Default: the database in the storage folder. Required with a bucket."""
    json: Path = Path("analysis/results/uncertainty_of_strokes.json")
    """Output file for the numbers."""
    picture: Path = Path("docs/uncertainty_of_strokes.png")
    """Output file for the picture of ten maps."""


def strokes_and_background(images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Masks (M, N) of the patches with strokes and of those of flat background, for (M, 3, H, W) in [−1, 1]."""
    cells = grid.patchify(images, patch).unflatten(2, (patch**2, images.shape[1]))  # (M, N, p², C)
    contrast = (cells.amax(dim=2) - cells.amin(dim=2)).amax(dim=-1)
    background = images[:, :, :1, :1].reshape(len(images), 1, 1, -1)  # the corner's colour
    flat = ((cells - background).abs() < 1 / 255).all(dim=3).all(dim=2)
    return contrast > CONTRAST, flat


def sigma_maps(model: PatchForcingTransformer, x1: Tensor, y: Tensor, time: float) -> Tensor:
    """Mean σ per patch (M, N)."""
    x0 = seeding.noise_for_images(0, 0, len(x1), tuple(x1.shape[1:]))
    return torch.from_numpy(patch_errors(model, x1, y, x0, t=time).sigma)


def ten_maps(images: Tensor, maps: Tensor, shape: tuple[int, int], path: Path, title: str) -> None:
    """Draw ten images above their maps, and write the figure to `path`."""
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(10.5, 2.6), layout="constrained")
        axes = figure.subplots(2, 10)
        chosen = np.linspace(0, len(images) - 1, 10).round().astype(int)
        low, high = float(maps[chosen].min()), float(maps[chosen].max())
        for column, i in enumerate(chosen):
            axes[0, column].imshow((images[i].permute(1, 2, 0) + 1) / 2, interpolation="nearest")
            shown = axes[1, column].imshow(maps[i].reshape(shape), cmap="magma", vmin=low, vmax=high)
        for axis in axes.flat:
            axis.set_axis_off()
        figure.colorbar(shown, ax=axes[1, :].tolist(), label="σ", fraction=0.02)
        figure.suptitle(title, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def main() -> int:
    """Measure, print and write the comparison."""
    a = tyro.cli(Arguments, description=__doc__)
    source = find_model(a.model, storage=a.storage, tracking_uri=a.tracking_uri)
    experiment = source.experiment or catalog.experiment(a.data)
    held_out = read_split(ensure(experiment.data), "validation", limit=a.images)
    x1, y = from_uint8(held_out.images), held_out.labels
    config = source.model.config
    if not config.difficulty_head:
        raise ConfigError(f"{a.model}: a SiT predicts no uncertainty; give a PFT")
    maps = sigma_maps(source.model, x1, y, a.time)
    strokes, flat = strokes_and_background(x1, config.patch)
    both = strokes.any(dim=1) & flat.any(dim=1)
    on_strokes = ((maps * strokes).sum(dim=1) / strokes.sum(dim=1))[both].double().numpy()
    on_flat = ((maps * flat).sum(dim=1) / flat.sum(dim=1))[both].double().numpy()
    difference = on_strokes - on_flat
    generator = np.random.default_rng(0)
    means = generator.choice(difference, (RESAMPLES, len(difference))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    result = {
        **{key: value for key, value in source.about().items() if key != "source"},
        "model": f"depth {config.depth}, width {config.width}, patch {config.patch}",
        "t": a.time,
        "images": len(difference),
        "images_without_one_of_the_two": int((~both).sum()),
        "sigma_on_strokes": float(on_strokes.mean()),
        "sigma_on_background": float(on_flat.mean()),
        "difference": float(difference.mean()),
        "difference_95_percent": [float(low), float(high)],
        "images_where_higher": float((difference > 0).mean()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": "cpu",
    }
    a.json.parent.mkdir(parents=True, exist_ok=True)
    a.json.write_text(json.dumps(result, indent=1) + "\n")
    seen = f"{source.images_seen:,} images seen, " if source.images_seen else ""
    shape = grid.grid_size(*config.image_size, config.patch)
    ten_maps(x1, maps, shape, a.picture, f"σ of held-out drawings at t = {a.time} ({seen}{result['model']})")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    exit_on_errors(main)
