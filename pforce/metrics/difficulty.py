"""Correlation of predicted uncertainty with the actual error: both per patch, and the paper's R(t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce import flow, grid
from pforce.metrics.intervals import bootstrap

TIMESTEPS = tuple(k / 20 for k in range(1, 20))
"""Timesteps at which R(t) is reported: 0.05, 0.1, …, 0.95."""
CONSTANT = 1e-12
"""Variance below which a resample of values that were standardised over the pool counts as constant (rounding
aside)."""

Floats = NDArray[np.float64]


class PatchErrors(NamedTuple):
    """Predicted and actual errors of all patches of M images at one timestep, (M, N) float64."""

    t: float
    sigma: Floats
    """Patch mean of σ = exp(ℓ/2), ℓ unclamped as samplers use it."""
    expected: Floats
    """Patch mean of exp(ℓ), the squared error that the model predicts; ℓ clamped as in the loss."""
    observed: Floats
    """Mean of (v* − v)² over the patch's pixels and channels."""
    labels: NDArray[np.int64]
    """Classes of the images, (M,)."""

    @property
    def images(self) -> int:
        """Number M of images."""
        return len(self.sigma)

    @property
    def patches(self) -> int:
        """Number M·N of patches of all images."""
        return self.sigma.size


class DifficultyCorrelation(NamedTuple):
    """R at one timestep, pooled over all patches of all images, with 95 % bootstrap intervals over images; NaN where
    undefined."""

    t: float
    pearson: float
    spearman: float
    pearson_interval: tuple[float, float]
    """(low, high); NaN for a single image, and where R is NaN."""
    spearman_interval: tuple[float, float]
    images: int
    patches: int


@torch.no_grad()
def patch_errors(
    model: flow.VelocityModel, x1: Tensor, y: Tensor, x0: Tensor, *, t: float, batch: int = 64
) -> PatchErrors:
    """Run the model once on every image with all patches at timestep t, for correlation and calibration.

    x1 are images (M, C, H, W) with labels y (M,), x0 is noise like x1. ValueError for a model without a difficulty
    head.
    """
    sigma, expected, observed = [], [], []
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        data, noise = x1[rows], x0[rows]
        times = torch.full((len(data),), t, device=data.device)
        velocity, log_variance = model(flow.interpolate(noise, data, times, model.patch), times, y[rows])
        if log_variance is None:
            raise ValueError("a model without a difficulty head expects no error: nothing to correlate or calibrate")
        squared = (flow.velocity_target(noise, data) - velocity).square()
        sigma.append(grid.pool((log_variance / 2).exp(), model.patch))
        expected.append(grid.pool(log_variance.float().clamp(*flow.LOG_VARIANCE_RANGE).exp(), model.patch))
        observed.append(grid.pool(squared, model.patch))
    s, e, o = (torch.cat(parts).double().cpu().numpy() for parts in (sigma, expected, observed))
    return PatchErrors(t, s, e, o, y.long().cpu().numpy())


def _products(a: Floats, b: Floats) -> Floats:
    """Means over each image's patches of a, b, a², b² and a·b, all that a correlation needs: (M, N) → (M, 5).

    a and b are standardised over the pool first, so that computing variances from these means loses no digits.
    """
    a, b = ((values - values.mean()) / values.std() for values in (a, b))
    return np.stack([part.mean(axis=1) for part in (a, b, a * a, b * b, a * b)], axis=1)


def _pearson(means: Floats) -> Floats:
    """Pearson's correlation (R,) from the means (R, 5) of `_products` over a pool; NaN where a or b is constant."""
    a, b, aa, bb, ab = means.T
    variances = np.stack([aa - a * a, bb - b * b])
    variances[variances < CONSTANT] = np.nan
    correlation: Floats = np.clip((ab - a * b) / np.sqrt(variances.prod(axis=0)), -1, 1)
    return correlation


def _ranks(values: Floats) -> Floats:
    """Ranks from 1 over the whole array, ties at their mean: scipy's `rankdata`, whose import takes a second of every
    process that measures."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (counts.cumsum() - (counts - 1) / 2)[place].reshape(values.shape)
    return ranks


def correlation_of(errors: PatchErrors) -> DifficultyCorrelation:
    """Pearson's and Spearman's correlation of σ with the squared error; NaN where σ (or the error) is constant.

    The intervals resample images, not patches: patches of one image are alike, so an interval over patches would be too
    narrow. Spearman's ranks are taken over the whole pool and kept in every resample.
    """
    m = errors.images
    if not (np.ptp(errors.sigma) and np.ptp(errors.observed)):
        # A head trained with λ = 0 predicts a constant: no number, and no warning either.
        nowhere = (math.nan, math.nan)
        return DifficultyCorrelation(errors.t, math.nan, math.nan, nowhere, nowhere, m, errors.patches)
    ranks = (_ranks(errors.sigma), _ranks(errors.observed))
    products = (_products(errors.sigma, errors.observed), _products(*ranks))

    def resampled(counts: Floats) -> Floats:
        return np.stack([_pearson(counts @ each / counts.sum(axis=1, keepdims=True)) for each in products], axis=1)

    values = resampled(np.ones((1, m)))[0]
    pearson, spearman = bootstrap(values, resampled, m)
    p, s = ((e.low, e.high) if m > 1 else (math.nan, math.nan) for e in (pearson, spearman))
    return DifficultyCorrelation(errors.t, pearson.value, spearman.value, p, s, m, errors.patches)


def correlation_by_class(errors: PatchErrors) -> dict[int, DifficultyCorrelation]:
    """`correlation_of` for the images of each class, by class in rising order; classes with fewer than 2 images are
    left out.

    As with any bootstrap, an interval from a handful of images is too narrow.
    """
    by_class = {}
    classes, counts = np.unique(errors.labels, return_counts=True)
    for label in classes[counts >= 2].tolist():
        rows = errors.labels == label
        some = PatchErrors(
            errors.t, errors.sigma[rows], errors.expected[rows], errors.observed[rows], errors.labels[rows]
        )
        by_class[label] = correlation_of(some)
    return by_class


def difficulty_correlation(
    model: flow.VelocityModel,
    x1: Tensor,
    y: Tensor,
    x0: Tensor,
    *,
    timesteps: Sequence[float] = TIMESTEPS,
    batch: int = 64,
) -> list[DifficultyCorrelation]:
    """R(t): correlation of the patch mean of σ = exp(ℓ/2) with the patch mean of the squared velocity error.

    x1 are held-out images (M, C, H, W) with labels y (M,), x0 is noise like x1; all patches share one timestep.
    ValueError for a model without a difficulty head.
    """
    return [correlation_of(patch_errors(model, x1, y, x0, t=t, batch=batch)) for t in timesteps]
