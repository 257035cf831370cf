"""A detector's features together with the images' own pixels, for distances between pixels."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pforce.metrics.detectors.base import Detector, Reading

MOST_SIDE = 64
"""Largest height and width of kept pixels; larger images are averaged down to it. 64² are 12 kB per image."""


def thumbnails(images: Tensor) -> Tensor:
    """Images uint8 (B, 3, H, W) of at most 64² pixels: smaller ones as they are, sides of larger ones averaged down to
    64 and rounded to bytes."""
    height, width = images.shape[-2:]
    size = min(height, MOST_SIDE), min(width, MOST_SIDE)
    if size == (height, width):
        return images
    return adaptive_avg_pool2d(images.float(), size).round().to(torch.uint8)


class WithPixels:
    """A detector that also returns the pixels.

    Args:
        inner: the detector of the features.
        bare: return features and pixels only, without logits and spatial features.
    """

    def __init__(self, inner: Detector, *, bare: bool = False) -> None:
        self.inner, self.bare = inner, bare
        self.name, self.sha256 = inner.name, inner.sha256
        self.feature_size, self.minimum_size = inner.feature_size, inner.minimum_size
        self.preprocessing = f"{inner.preprocessing}; with pixels, averaged to at most {MOST_SIDE}²"

    def to(self, device: torch.device) -> Self:
        """The detector on that device."""
        return type(self)(self.inner.to(device), bare=self.bare)

    def read(self, images: Tensor) -> Reading:
        """Features and pixels of uint8 images (B, 3, H, W). ValueError for another shape or type."""
        found = self.inner.read(images)
        seen = Reading(found.features) if self.bare else found
        return seen._replace(pixels=thumbnails(images))
