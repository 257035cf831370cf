"""Flow matching with per-patch timesteps: interpolation, velocity target, losses.

x_t = t·x1 + (1 − t)·x0 with x0 ~ N(0, I); the target velocity is v* = x1 − x0. Timesteps are (B,) or (B, N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pforce import grid
from pforce.base.errors import require

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Clamp of the log-variance inside the loss. Samplers use the unclamped value."""
VALIDATION_SEGMENTS = 8


class Prediction(NamedTuple):
    """A model's output at x_t."""

    velocity: Tensor
    """Predicted velocity, (B, C, H, W)."""
    log_variance: Tensor | None
    """Log of the velocity's predicted variance at each pixel, (B, 1, H, W); None from a model without a difficulty
    head."""


class VelocityModel(Protocol):
    """The interface of a model for the losses and metrics."""

    @property
    def patch(self) -> int: ...

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, /) -> Prediction: ...


class Loss(NamedTuple):
    """The three numbers of a training step, each a scalar tensor."""

    total: Tensor
    mse: Tensor
    nll: Tensor
    """Gaussian negative log-likelihood of the velocity; 0 without a difficulty head."""


@dataclass(frozen=True)
class FlowConfig:
    """The training objective."""

    difficulty_weight: float = 0.01
    """λ: weight of the difficulty head's negative log-likelihood, ≥ 0."""

    def __post_init__(self) -> None:
        require(0 <= self.difficulty_weight < math.inf, "difficulty_weight", self.difficulty_weight, "≥ 0")


def interpolate(x0: Tensor, x1: Tensor, t: Tensor, patch: int) -> Tensor:
    """x_t (B, C, H, W) on the straight line from noise x0 to data x1; t is (B,) or (B, N)."""
    pixels = grid.to_pixels(t, patch, x1.shape[-2], x1.shape[-1])
    return pixels * x1 + (1 - pixels) * x0


def velocity_target(x0: Tensor, x1: Tensor) -> Tensor:
    """The target velocity v* = x1 − x0, (B, C, H, W)."""
    return x1 - x0


def negative_log_likelihood(error: Tensor, log_variance: Tensor) -> Tensor:
    """Mean of ½[log 2π + ℓ + error²·e^(−ℓ)], ℓ (B, 1, H, W) clamped to [−30, 20], error (B, C, H, W)."""
    clamped = log_variance.clamp(*LOG_VARIANCE_RANGE)
    return 0.5 * (math.log(2 * math.pi) + clamped + error.square() * torch.exp(-clamped)).mean()


def loss(
    model: VelocityModel, x1: Tensor, y: Tensor, t: Tensor, x0: Tensor, *, difficulty_weight: float = 0.01
) -> Loss:
    """The paper's objective: mean((v* − v)²) + λ·NLL(v* | sg(v), e^ℓ), in float32.

    Args:
        x1: data (B, C, H, W).
        y: classes (B,).
        t: timesteps (B,) or (B, N).
        x0: noise like x1.
        difficulty_weight: λ. The stop-gradient sg keeps the likelihood from training the velocity.
    """
    prediction = model(interpolate(x0, x1, t, model.patch), t, y)
    target = velocity_target(x0, x1)
    mse = (target - prediction.velocity.float()).square().mean()
    if prediction.log_variance is None:
        return Loss(mse, mse, torch.zeros_like(mse))
    error = target - prediction.velocity.detach().float()
    nll = negative_log_likelihood(error, prediction.log_variance.float())
    return Loss(mse + difficulty_weight * nll, mse, nll)


def validation_timesteps() -> list[float]:
    """The midpoints (i + ½)/8 of the eight segments of [0, 1]."""
    return [(segment + 0.5) / VALIDATION_SEGMENTS for segment in range(VALIDATION_SEGMENTS)]


@torch.no_grad()
def validation_loss(model: VelocityModel, x1: Tensor, y: Tensor, x0: Tensor) -> Tensor:
    """The MSE term at each of the eight segments, all patches at one timestep: (8,) float64.

    The validation loss is the mean of the eight. x1, x0 are (B, C, H, W), y is (B,). To pool batches, weight them by
    their sizes.
    """
    target = velocity_target(x0, x1)
    segments = []
    for time in validation_timesteps():
        t = torch.full((x1.shape[0],), time, device=x1.device)
        velocity = model(interpolate(x0, x1, t, model.patch), t, y).velocity
        segments.append((target - velocity.float()).square().mean(dtype=torch.float64))
    return torch.stack(segments)
