"""Does predicted uncertainty mean difficulty? The correlation R(t) of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pforce import flow, grid


class DifficultyCorrelation(NamedTuple):
    """R at one timestep, pooled over all patches of all images."""

    t: float
    pearson: float
    spearman: float
    images: int
    patches: int


@torch.no_grad()
def difficulty_correlation(
    model: flow.VelocityModel, x1: Tensor, y: Tensor, x0: Tensor, *, timesteps: Sequence[float], batch: int = 64
) -> list[DifficultyCorrelation]:
    """Correlation of the patch mean of σ = exp(ℓ/2) with the patch mean of the squared velocity error.

    Held-out images x1 (M, C, H, W) with labels y (M,), noise x0 like x1, one timestep for all patches.
    ValueError for a model without a difficulty head.
    """
    from scipy import stats  # 0.8 s to import: here it is paid by an evaluation, not by every command and process

    results = []
    for time in timesteps:
        sigma, error = [], []
        for first in range(0, len(x1), batch):
            rows = slice(first, first + batch)
            data, noise = x1[rows], x0[rows]
            t = torch.full((len(data),), time, device=data.device)
            velocity, log_variance = model(flow.interpolate(noise, data, t, model.patch), t, y[rows])
            if log_variance is None:
                raise ValueError("difficulty correlation of a model without a difficulty head")
            squared = (flow.velocity_target(noise, data) - velocity).square()
            sigma.append(grid.pool((log_variance / 2).exp(), model.patch))
            error.append(grid.pool(squared, model.patch))
        u, e = (torch.cat(parts).flatten().double().cpu().numpy() for parts in (sigma, error))
        pearson, spearman = stats.pearsonr(u, e).statistic, stats.spearmanr(u, e).statistic
        results.append(DifficultyCorrelation(time, float(pearson), float(spearman), len(x1), len(u)))
    return results
