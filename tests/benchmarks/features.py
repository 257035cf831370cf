"""10,000 images of 64² through the `openmoji` detector: ours against torch-fidelity's folder path.

All read the same pixels and run the same network; ours runs it with batch norms folded into convolutions, which
torch-fidelity is also given, to tell the two apart. torch-fidelity decodes in worker processes that it starts for
each call and keeps every batch's features; ours decodes on threads while the detector works. Images that come from
a sampler must be written before torch-fidelity can read its folder (third row), and need no files for us (last row).

Bytes: 10,000 · 3 · 64² = 123 MB of pixels. Multiply-adds: 18 M an image, 180 G in all.

Command: python -m tests.benchmarks.features [--images 10000] [--rounds 5]
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from pforce.base.console import make_console
from pforce.data import openmoji
from pforce.metrics.detectors import classifier, load_detector
from pforce.metrics.features import read_features
from pforce.metrics.image_sets import ImageFolder, ImageTensor

SIZE, BATCH = 64, 64


def write_images(folder: Path, count: int) -> None:
    """Real drawings; from the 4,496th on mirrored or upside down."""
    drawings = openmoji.catalogue()
    for number in track(range(count), description="drawing"):
        turn, which = divmod(number, len(drawings))
        image = openmoji.draw(drawings[which].hexcode, SIZE)
        turned = (image, ImageOps.mirror(image), ImageOps.flip(image))[turn % 3]
        turned.save(folder / f"{number:06d}.png")


def their_features(network: Callable[[Tensor], Tensor], folder: Path) -> Tensor:
    """torch-fidelity's features of a folder, with a network of ours registered as its detector."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.utils import extract_featuresdict_from_input_id_cached

    class Ours(FeatureExtractorBase):  # type: ignore[misc]
        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (network(images),)

    options: dict[str, Any] = {"input1": str(folder), "cuda": False, "cache": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its number of worker processes
        found: Tensor = extract_featuresdict_from_input_id_cached(
            1, Ours("openmoji", ["features"]), batch_size=BATCH, **options
        )["features"]
    return found


def main(images: int = 10_000, rounds: int = 5) -> None:
    """Time the three, interleaved, and print seconds and ratios."""
    console = make_console()
    detector = load_detector("openmoji")
    as_trained = classifier.load("openmoji", fused=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder, images)
        pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]))
        in_memory = ImageTensor(pixels.permute(0, 3, 1, 2))

        def written_and_read() -> Tensor:
            with tempfile.TemporaryDirectory() as new:
                for number, image in enumerate(pixels.numpy()):
                    Image.fromarray(image).save(Path(new) / f"{number:06d}.png")
                return their_features(lambda x: as_trained.read(x).features, Path(new))

        def ours(of: ImageFolder | ImageTensor) -> Tensor:
            return read_features(detector, of.batches(BATCH), size=BATCH).features

        ways: dict[str, Callable[[], Tensor]] = {
            "torch-fidelity, folder": lambda: their_features(lambda x: as_trained.read(x).features, folder),
            "torch-fidelity, our fused network": lambda: their_features(lambda x: detector.read(x).features, folder),
            "the first, files written before": written_and_read,
            "pforce, folder": lambda: ours(ImageFolder(folder)),
            "pforce, from memory": lambda: ours(in_memory),
        }
        expected = their_features(lambda x: as_trained.read(x).features, folder)  # once before: page cache, imports
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                found = way()
                seconds[name].append(time.perf_counter() - started)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    theirs = np.array(seconds["torch-fidelity, folder"])
    console.print(f"{images:,} images of {SIZE}², {torch.get_num_threads()} threads, {rounds} rounds; median (range)")
    for name, values in seconds.items():
        ratios = theirs / np.array(values)
        console.print(
            f"{name:34} {np.median(values):6.2f} s ({min(values):.2f} … {max(values):.2f}), "
            f"{np.median(ratios):.2f} × ({ratios.min():.2f} … {ratios.max():.2f}) as fast",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    tyro.cli(main)
