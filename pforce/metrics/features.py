"""Features of many images: streamed through a detector in batches of one size.

Batches are fixed by image index, and the last one is padded to the size of the others, because a convolution of another
batch size may round differently. So the features of an image do not depend on the number of other images, on the number
of workers, or on an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pforce.metrics.detectors.base import Detector, Reading


@dataclass(frozen=True)
class FeatureSet:
    """A detector's features of N images, in the order of their indices; float32 on the CPU."""

    detector: str
    sha256: str
    """SHA-256 of the detector's weights."""
    features: Tensor
    """Features that distances compare, (N, D)."""
    logits: Tensor | None = None
    """Logits, (N, classes); None for detectors without ImageNet's classes."""
    spatial: Tensor | None = None
    """Spatial features for sFID, (N, S); None for detectors without them."""
    pixels: Tensor | None = None
    """Pixels (N, 3, h, w) uint8, at most 64²; None unless read by `WithPixels`."""
    labels: Tensor | None = None
    """Classes that the images were drawn with, (N,); None for given images."""
    predicted: Tensor | None = None
    """Classes that the detector sees in the images, (N,); None for detectors that are no classifier of the data."""

    def __len__(self) -> int:
        return len(self.features)

    def cut(self, end: int, first: int = 0) -> FeatureSet:
        """The features of images `first` to `end` − 1; by default of the first `end` images."""
        parts = (self.features, self.logits, self.spatial, self.pixels, self.labels, self.predicted)
        cut = (None if part is None else part[first:end] for part in parts)
        return FeatureSet(self.detector, self.sha256, *cut)  # type: ignore[arg-type]  # features are there

    def of_classes(self, labels: Tensor, detector: Detector) -> FeatureSet:
        """These features with the classes that the images were drawn with, and those that the detector sees.

        Args:
            labels: classes (M,); image i has class labels[i mod M].
        """
        classify = getattr(detector, "classify", None)
        return replace(
            self, labels=labels[torch.arange(len(self)) % len(labels)],
            predicted=None if classify is None else classify(self.features),
        )  # fmt: skip


def read_padded(detector: Detector, images: Tensor, size: int) -> Reading:
    """Features of up to `size` uint8 images (B, 3, H, W), from a forward pass of exactly `size` images."""
    count = len(images)
    if count < size:
        images = torch.cat([images, images[-1:].expand(size - count, -1, -1, -1)])
    with torch.inference_mode():
        seen = detector.read(images)
    read = {name: part[:count].cpu() for name, part in seen._asdict().items() if part is not None}
    return Reading(**{name: part if name == "pixels" else part.float() for name, part in read.items()})


def collect(detector: Detector, readings: Iterable[Reading]) -> FeatureSet:
    """Join batches in order to one set. ValueError where there are none."""
    parts = list(readings)
    if not parts:
        raise ValueError("no images: features need at least one")

    def joined(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat(found)

    features = joined("features")
    assert features is not None
    return FeatureSet(
        detector.name, detector.sha256, features, joined("logits"), joined("spatial"), joined("pixels")
    )  # fmt: skip


def read_features(
    detector: Detector,
    batches: Iterable[Tensor],
    *,
    size: int,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureSet:
    """Features of uint8 images (B, 3, H, W) that come in batches, B = `size` for all but the last.

    Args:
        device: device of the detector; by default, the images' device.
        progress: callback that gets the number of images that are done.
    """

    def readings() -> Iterator[Reading]:
        done = 0
        for images in batches:
            yield read_padded(detector, images if device is None else images.to(device), size)
            done += len(images)
            progress(done)

    return collect(detector, readings())
