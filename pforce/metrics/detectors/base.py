"""What a Fréchet distance needs of a feature detector."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor


class DetectorError(RuntimeError):
    """A detector's files are missing or not the ones its record names. The message says which, and the cure."""


class Detector(Protocol):
    """A frozen network whose features are compared between two sets of images."""

    name: str
    """As in the metric's name: `fd/<name>`."""
    feature_size: int
    minimum_size: int
    """Smallest height and width of an image, in pixels."""
    sha256: str
    """Of the weights file: features of different weights are not comparable."""

    def to(self, device: torch.device) -> Self:
        """The detector on that device."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [−1, 1] → (B, feature_size) float32. A row depends on its image only."""
        ...
