"""Does predicted uncertainty mean difficulty? What a model says of its error at each patch, and the paper's R(t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce import flow, grid


class PatchErrors(NamedTuple):
    """All patches of M images at one timestep: what the model says of its error, and the error. (M·N,) float64."""

    t: float
    sigma: NDArray[np.float64]
    """Patch mean of σ = exp(ℓ/2), ℓ unclamped as samplers use it."""
    expected: NDArray[np.float64]
    """Patch mean of exp(ℓ), the squared error that the model expects; ℓ clamped as in the loss."""
    observed: NDArray[np.float64]
    """Mean of (v* − v)² over the patch's pixels and channels."""
    images: int


class DifficultyCorrelation(NamedTuple):
    """R at one timestep, pooled over all patches of all images."""

    t: float
    pearson: float
    spearman: float
    images: int
    patches: int


@torch.no_grad()
def patch_errors(
    model: flow.VelocityModel, x1: Tensor, y: Tensor, x0: Tensor, *, t: float, batch: int = 64
) -> PatchErrors:
    """Run the model once on every image, all patches at timestep t: what correlation and calibration read.

    Images x1 (M, C, H, W) with labels y (M,), noise x0 like x1. ValueError for a model without a difficulty head.
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
    s, e, o = (torch.cat(parts).flatten().double().cpu().numpy() for parts in (sigma, expected, observed))
    return PatchErrors(t, s, e, o, len(x1))


def correlation_of(errors: PatchErrors) -> DifficultyCorrelation:
    """Pearson and Spearman correlation of σ with the squared error; NaN where σ is the same at every patch."""
    from scipy import stats  # 0.8 s to import: here it is paid by an evaluation, not by every command and process

    pearson = spearman = math.nan
    if np.ptp(errors.sigma) != 0:  # a head trained with λ = 0 says nothing: no number, and no warning either
        pearson = float(stats.pearsonr(errors.sigma, errors.observed).statistic)
        spearman = float(stats.spearmanr(errors.sigma, errors.observed).statistic)
    return DifficultyCorrelation(errors.t, pearson, spearman, errors.images, len(errors.sigma))


def difficulty_correlation(
    model: flow.VelocityModel, x1: Tensor, y: Tensor, x0: Tensor, *, timesteps: Sequence[float], batch: int = 64
) -> list[DifficultyCorrelation]:
    """Correlation of the patch mean of σ = exp(ℓ/2) with the patch mean of the squared velocity error.

    Held-out images x1 (M, C, H, W) with labels y (M,), noise x0 like x1, one timestep for all patches.
    ValueError for a model without a difficulty head.
    """
    return [correlation_of(patch_errors(model, x1, y, x0, t=t, batch=batch)) for t in timesteps]
