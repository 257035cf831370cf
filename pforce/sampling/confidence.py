"""Confident patches: the rule that the adaptive samplers share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pforce import grid
from pforce.base.errors import require
from pforce.flow import Prediction

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator per batch, or one per image (then an image does not depend on its batch)."""


def uncertainty(prediction: Prediction, patch: int, pooling: grid.Pooling) -> Tensor:
    """u: exp(log-variance), the predicted variance of the velocity, pooled over each patch: (B, N) float64."""
    assert prediction.log_variance is not None  # solvers refuse a model without a difficulty head
    return grid.pool(prediction.log_variance.float().exp(), patch, pooling).double()


def _rank(quantile: float, patches: int, patch: int) -> tuple[int, int, float]:
    """Indices of the two sorted patches between which the quantile of the pixel map lies, and the weight of the second.

    In the pixel map (published behaviour) each of the N values stands p² times, so the k-th of the N·p² sorted values
    is that of patch k // p².
    """
    position = quantile * (patches * patch**2 - 1)
    below = math.floor(position)
    return below // patch**2, math.ceil(position) // patch**2, position - below


def quantile_threshold(u: Tensor, quantile: float, patch: int) -> Tensor:
    """The quantile of each image's pixel map, linearly interpolated in float64: (B, N) → (B, 1)."""
    first, second, weight = _rank(quantile, u.shape[1], patch)
    ordered = u.sort(dim=1).values
    return torch.lerp(ordered[:, first : first + 1], ordered[:, second : second + 1], weight)


def confident_count(quantile: float, patches: int, patch: int) -> int:
    """Number of patches, of N with distinct values, strictly below that quantile (25 of 64 at 0.4, p = 2)."""
    first, second, weight = _rank(quantile, patches, patch)
    return first + (1 if second > first and weight > 0 else 0)


def confident_patches(u: Tensor, patch: int, *, quantile: float, threshold: float | None) -> Tensor:
    """Mask (B, N) bool of the patches whose uncertainty u (B, N) is strictly below the threshold, or without one, below
    the image's quantile."""
    return u < (quantile_threshold(u, quantile, patch) if threshold is None else threshold)


def random_patches(shape: torch.Size, count: int, generator: Generators, device: torch.device) -> Tensor:
    """Mask (B, N) bool of `count` random patches per image, drawn on the generator's device."""
    if isinstance(generator, Sequence):
        rows = [torch.rand(shape[1], generator=one, device=one.device) for one in generator]
        noise = torch.stack(rows).to(device)
    else:
        origin = device if generator is None else generator.device
        noise = torch.rand(shape, generator=generator, device=origin).to(device)
    chosen = noise.argsort(dim=1)[:, :count]
    return torch.zeros(shape, dtype=torch.bool, device=device).scatter_(1, chosen, True)


def require_share(quantile: float) -> None:
    """Raise FieldError unless 0 < quantile < 1."""
    require(
        0 < quantile < 1,
        "quantile",
        quantile,
        "between 0 and 1, both excluded (for no confident patch take euler, or threshold = 0)",
    )


def require_threshold(threshold: float | None) -> None:
    """Raise FieldError unless the threshold is None or a variance ≥ 0."""
    require(threshold is None or 0 <= threshold < math.inf, "threshold", threshold, "≥ 0 (a variance), or None")
