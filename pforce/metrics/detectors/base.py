"""What a distance needs of a feature detector."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from pforce.base.errors import InputError


class DetectorError(InputError, RuntimeError):
    """A detector's files are missing or not the ones its record names. The message says which, and the cure."""


class Reading(NamedTuple):
    """What a detector sees in a batch of images, float32. A row depends on its image only."""

    features: Tensor
    """(B, D), what distances compare."""
    logits: Tensor | None = None
    """(B, classes) without bias, for the Inception Score; None of detectors without such classes."""
    spatial: Tensor | None = None
    """(B, S) features with a place in the image, for sFID; None of detectors that have none."""


class Detector(Protocol):
    """A frozen network whose features are compared between two sets of images."""

    name: str
    """As in the metric's name: `fd/<name>`."""
    feature_size: int
    """D."""
    minimum_size: int
    """Smallest height and width of an image, in pixels."""
    sha256: str
    """SHA-256 of the weights: features of different weights are not comparable."""
    preprocessing: str
    """What is done to an image before the network, in words: part of the identity of features."""

    def to(self, device: torch.device) -> Self:
        """The detector on that device."""
        ...

    def read(self, images: Tensor) -> Reading:
        """(B, 3, H, W) uint8 images → what is seen in them.

        Bytes, because that is what files hold and what published statistics were made from: images that come from a
        sampler and the same images read from PNG files give the same features.
        ValueError for another shape or type.
        """
        ...
