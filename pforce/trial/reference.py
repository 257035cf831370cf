"""What generated images are compared with: real images of a data set, or stored statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from pforce.data import Batch, Manifest, read_batches
from pforce.data.manifest import SplitName
from pforce.files import sha256_of
from pforce.metrics.detectors import Detector
from pforce.metrics.evaluate import EvaluationConfig
from pforce.metrics.image_sets import ImageTensor
from pforce.metrics.reference import (
    ReferenceStatistics,
    StatisticsError,
    cached_reference,
    load_statistics,
)
from pforce.validation import ConfigError

STORED = (".npz",)


class SplitImages:
    """The images of a data set's split, read shard by shard."""

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, split: SplitName) -> None:
        self.folder, self.split, self.manifest = folder, split, Manifest.load(folder)
        self.size = (self.manifest.resolution, self.manifest.resolution)

    def __len__(self) -> int:
        return self.manifest.split(self.split).samples

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W)."""
        return read_batches(self.folder, self.split, size)

    def content_hash(self) -> str:
        """The manifest's, and the split."""
        return f"{self.manifest.hash} {self.split}"


def is_stored(config: EvaluationConfig) -> bool:
    """Whether the reference is a file of statistics."""
    return config.reference.endswith(STORED)


def check_reference(config: EvaluationConfig, detector: Detector) -> None:
    """StatisticsError where the reference is a file that cannot be used with the detector."""
    if is_stored(config):
        load_statistics(Path(config.reference), detector, images=False)


def inputs_of(config: EvaluationConfig, manifest: Manifest, detector: Detector) -> dict[str, str]:
    """Content hashes of what a training and its evaluation read: what a fingerprint hashes besides the experiment."""
    inputs = {"data": manifest.hash, "detector": detector.sha256}
    if config.detector_is_foreign:  # its weights may be the same where what is done with them is not
        inputs["preprocessing"] = detector.preprocessing
    if is_stored(config):
        try:
            inputs["reference"] = sha256_of(Path(config.reference))
        except OSError as error:
            raise StatisticsError(f"reference statistics {config.reference}: cannot be read ({error})") from error
    return inputs


def reference_for(
    config: EvaluationConfig,
    folder: Path,
    detector: Detector,
    *,
    held_out: Batch,
    cache: Path | None,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> ReferenceStatistics:
    """The reference of an evaluation.

    Args:
        folder: of the data set. held_out: its images that the evaluation has read; the reference where it is
            `validation`.
        detector: on the device. cache: folder of reference features that were made before.
    """
    if is_stored(config):
        return load_statistics(Path(config.reference), detector, device=device, progress=progress)
    name = folder.name
    if config.reference == "train":
        source = f"training images of {name}"
        return cached_reference(
            SplitImages(folder, "train"), detector, cache, source=source, device=device, progress=progress
        )
    if config.reference != "validation":
        raise ConfigError(f"reference = {config.reference!r}: must be validation, train or an .npz file")
    images = ImageTensor(held_out.images)
    return cached_reference(images, detector, cache, source=f"{len(images):,} held-out images of {name}", device=device)
