"""Inputs of an evaluation: held-out images, and the reference that generated images are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pforce.base.errors import FieldError
from pforce.base.files import sha256_of
from pforce.data import Batch, Manifest, read_batches, read_labels, read_split
from pforce.data.manifest import SplitName
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.detectors import Detector, DetectorError, Reading, WithPixels
from pforce.metrics.detectors.pixels import MOST_SIDE
from pforce.metrics.distances import NEAREST
from pforce.metrics.features import FeatureSet, collect, read_padded
from pforce.metrics.image_sets import ImageSet, open_images
from pforce.metrics.memorisation import TRAINING_AT_ONCE, Training
from pforce.metrics.reference import (
    BATCH,
    ReferenceStatistics,
    StatisticsError,
    cached_features,
    cached_reference,
    load_statistics,
)
from pforce.records.contents import image_set
from pforce.records.identity import versions_of
from pforce.records.parts import FLOAT32, Inputs, reference_of

STORED = (".npz",)
KEPT_BYTES = 1 << 30
"""Bytes of a training set's features and pixels up to which they are kept; larger ones are read anew each time."""
REFERENCES = "references"
"""Folder of reference features, which can be made again, below a storage's root."""


class SplitImages:
    """Images of a data set's split: all of them, read shard by shard, or some, spread evenly over it."""

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, split: SplitName, images: int | None = None) -> None:
        self.folder, self.split, self.manifest = folder, split, Manifest.load(folder)
        self.size = (self.manifest.resolution, self.manifest.resolution)
        samples = self.manifest.split(split).samples
        self.images = samples if images is None else min(images, samples)

    def __len__(self) -> int:
        return self.images

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches (B, 3, H, W) uint8 with B = size, except the last."""
        if self.images == self.manifest.split(self.split).samples:
            return read_batches(self.folder, self.split, size)
        return iter(read_split(self.folder, self.split, limit=self.images).images.split(size))

    def content_hash(self) -> str:
        """Hash of the manifest with the split and the number of images."""
        return f"{self.manifest.hash} {self.split} {self.images}"


class HeldOut:
    """A data set's held-out images, read once per number of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.samples = Manifest.load(folder).validation.samples
        self._read: dict[int, Batch] = {}

    def __call__(self, images: int) -> Batch:
        """Up to that many held-out images, spread evenly over the split."""
        wanted = min(images, self.samples)
        if wanted not in self._read:
            self._read[wanted] = read_split(self.folder, "validation", limit=wanted)
        return self._read[wanted]


def is_stored(config: EvaluationConfig) -> bool:
    """Whether the reference is a file of statistics."""
    return config.reference.endswith(STORED)


def check_reference(config: EvaluationConfig, detector: Detector) -> None:
    """Raise StatisticsError where the reference is a file that cannot be used with the detector."""
    if is_stored(config):
        load_statistics(Path(config.reference), detector, images=False)


@cache
def _sha256(path: str, changed: int, size: int) -> str:
    return sha256_of(Path(path))


def inputs_of(config: EvaluationConfig, manifest: Manifest, detector: Detector, *, auto: str = FLOAT32) -> Inputs:
    """Inputs of a training and its evaluation, by content.

    Args:
        auto: precision that `training.precision = auto` stands for on the devices that will train.

    Raises:
        StatisticsError: a file of statistics cannot be read.
        DetectorError: a further detector cannot be loaded.
    """
    reference = None
    if is_stored(config):
        try:
            found = Path(config.reference).stat()
            reference = _sha256(config.reference, found.st_mtime_ns, found.st_size)
        except OSError as error:
            raise StatisticsError(f"reference statistics {config.reference}: cannot be read ({error})") from error
    further = tuple((each.name, each.sha256, each.preprocessing) for each in config.load_further())
    return Inputs(
        manifest.hash, manifest.train.samples, manifest.validation.samples, detector.name, detector.sha256,
        detector.preprocessing, reference, auto, further,
    )  # fmt: skip


def check_detector(detector: Detector, planned: Mapping[str, str]) -> None:
    """Raise DetectorError where a detector is not the planned one by name, hash and preprocessing."""
    found = {"name": detector.name, "sha256": detector.sha256, "preprocessing": detector.preprocessing}
    for name, value in planned.items():
        if found[name] != value:
            raise DetectorError(
                f"detector {detector.name}: its {name} here is {found[name][:60]}, and {value[:60]} was planned: "
                "the same files and package versions are needed on all machines"
            )


@dataclass(frozen=True)
class ReferenceImages:
    """The reference that generated images are compared with, not read yet."""

    kind: Literal["split", "statistics", "images"]
    """Kind of the reference: images of a data set, a file of statistics, or a folder or npz of images."""
    path: str
    """Folder of the data set, or the file or folder itself."""
    identity: str
    """Identity by content, which names results."""
    images: int
    """Number of images; 0 where a file does not state it."""
    size: tuple[int, int] | None = None
    """Height and width; None where a file does not state them."""
    split: SplitName = "validation"

    def statistics(
        self,
        detector: Detector,
        cache: Path | None,
        *,
        device: torch.device,
        progress: Callable[[int], None] = lambda done: None,
    ) -> ReferenceStatistics:
        """Compute the statistics with a detector, which is on the device, or read them from the cache.

        Args:
            cache: folder of reference features made before.
        """
        path = Path(self.path)
        if self.kind == "statistics":
            found = load_statistics(path, detector, cache=cache, device=device, progress=progress)
            if f"file:{found.identity}" != self.identity:
                raise StatisticsError(
                    f"reference statistics {path}: hold {found.identity[:12]}, where {self.identity[5:17]} was planned "
                    "with: the file was replaced meanwhile"
                )
            return found
        images: ImageSet
        if self.kind == "split":
            images = SplitImages(path, self.split, self.images)
            source = f"{self.images:,} {'training' if self.split == 'train' else 'held-out'} images of {path.name}"
        else:
            images, source = open_images(path), str(path)
        labels = partial(read_labels, path, self.split, limit=self.images) if self.kind == "split" else None
        version = versions_of(f"detector.{detector.name}")  # raised where a change of its code changes features
        content = self.identity + "".join(f" version {number}" for number in version.values())
        found = cached_reference(
            images, detector, cache, source=source, content=content, device=device, progress=progress
        )
        return replace(found, labels=labels)


def reference_images(config: EvaluationConfig, folder: Path, inputs: Inputs, resolution: int) -> ReferenceImages:
    """The reference of an evaluation.

    Args:
        folder: of the data set.
    """
    identity = reference_of(config, inputs)
    if is_stored(config):
        return ReferenceImages("statistics", config.reference, identity, 0)
    split: SplitName = "train" if config.reference == "train" else "validation"
    count = config.reference_count(inputs.train if split == "train" else inputs.validation)
    return ReferenceImages("split", str(folder), identity, count, (resolution, resolution), split)


def compared_images(manifest: Manifest | None, size: tuple[int, int] | None, held_out: int) -> dict[str, Any]:
    """The held-out images that memorisation is measured with, as plain data. FieldError where images cannot be compared
    with the data set's.

    Args:
        manifest: of the data set; None where none is known.
        size: height and width of the images, where they are known.
        held_out: number of held-out images; all where there are fewer.
    """
    if manifest is None or manifest.channels != 3:
        what = "no data set is known" if manifest is None else f"{manifest.name} has latents"
        raise _not_compared(f"{what}: it needs training images (--data names a data set)")
    side = manifest.resolution
    if size is not None and size != (side, side):
        raise _not_compared(f"images of {size[1]}×{size[0]} do not compare with training images of {side}²")
    return image_set(manifest.hash, "validation", min(held_out, manifest.validation.samples))


def _not_compared(why: str) -> FieldError:
    return FieldError("evaluation.metrics", NEAREST, f"left out, as {why}")


def training_images(
    folder: Path, held_out: int, detector: Detector, cache: Path | None, *, device: torch.device
) -> Training:
    """A data set's training images and held-out ones, read by a detector.

    The features of a small training set are kept in the cache; those of a large one are read anew each time, as they
    would fill the storage.

    Args:
        folder: of the data set.
        held_out: number of held-out images, spread evenly; all where there are fewer.
        detector: on the device.
        cache: folder of features made before.
    """
    reader = WithPixels(detector, bare=True)
    version = "".join(f" version {number}" for number in versions_of(f"detector.{detector.name}").values())
    train, validation = SplitImages(folder, "train"), SplitImages(folder, "validation", held_out)

    def features(images: SplitImages) -> FeatureSet:
        return cached_features(images, reader, cache, content=images.content_hash() + version, device=device)[0]

    image = 4 * detector.feature_size + 3 * min(train.size[0], MOST_SIDE) ** 2
    large = len(train) * image > KEPT_BYTES
    blocks = (lambda: _streamed(train, reader, device)) if large else (lambda: _cut(features(train)))
    return Training(features(validation), len(train), blocks, device if device.type == "cuda" else torch.device("cpu"))


def _cut(found: FeatureSet) -> Iterator[FeatureSet]:
    """Features in blocks."""
    for first in range(0, len(found), TRAINING_AT_ONCE):
        yield found.cut(first + TRAINING_AT_ONCE, first)


def _streamed(images: SplitImages, reader: WithPixels, device: torch.device) -> Iterator[FeatureSet]:
    """Features of images in blocks, of which one is in memory at a time."""
    readings: list[Reading] = []
    for batch in images.batches(BATCH):
        readings.append(read_padded(reader, batch.to(device), BATCH))
        if len(readings) * BATCH >= TRAINING_AT_ONCE:
            yield collect(reader, readings)
            readings = []
    if readings:
        yield collect(reader, readings)


def reference_for(
    config: EvaluationConfig,
    folder: Path,
    detector: Detector,
    inputs: Inputs,
    *,
    cache: Path | None,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> ReferenceStatistics:
    """The reference of an evaluation.

    Args:
        folder: of the data set.
        detector: on the device.
        cache: folder of reference features made before.
    """
    found = reference_images(config, folder, inputs, 0)
    return found.statistics(detector, cache, device=device, progress=progress)
