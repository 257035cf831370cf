"""The interface of feature detectors."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from pforce.base.errors import InputError


class DetectorError(InputError, RuntimeError):
    """A detector's files are missing or are not those that its record names. The message gives the file and the
    remedy."""


class Reading(NamedTuple):
    """A detector's output for a batch of images, float32. Each row depends on its image only."""

    features: Tensor
    """Features that distances compare, (B, D)."""
    logits: Tensor | None = None
    """Logits without bias, (B, classes), for the Inception Score; None for detectors without ImageNet's classes."""
    spatial: Tensor | None = None
    """Spatial features (B, S), for sFID; None for detectors without them."""
    pixels: Tensor | None = None
    """The images themselves, (B, 3, h, w) uint8, from `WithPixels` only."""


class Detector(Protocol):
    """A frozen network whose features are compared between two sets of images."""

    name: str
    """Name of the detector in names of metrics: `fd/<name>`."""
    feature_size: int
    """Number D of features."""
    minimum_size: int
    """Smallest height and width of an image, in pixels."""
    sha256: str
    """SHA-256 of the weights: features of different weights are not comparable."""
    preprocessing: str
    """Preprocessing of an image before the network, in words; it is part of the identity of features."""

    def to(self, device: torch.device) -> Self:
        """The detector on that device."""
        ...

    def read(self, images: Tensor) -> Reading:
        """Features of uint8 images (B, 3, H, W).

        Images are bytes because files hold bytes and published statistics were made from them: images from a sampler
        and the same images read from PNG files have the same features. ValueError for another shape or type.
        """
        ...
