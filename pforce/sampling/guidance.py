"""Classifier-free guidance: the one function through which every sampler evaluates a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pforce.base.errors import require
from pforce.flow import Prediction
from pforce.models.config import ModelConfig
from pforce.models.transformer import TimestepLevels


class Denoiser(Protocol):
    """The interface of a model for samplers."""

    @property
    def config(self) -> ModelConfig: ...

    def __call__(self, x: Tensor, t: Tensor | TimestepLevels, y: Tensor, /) -> Prediction: ...


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: v_u + w·(v_c − v_u), and the same for the log-variance (Ho & Salimans 2022)."""

    scale: float = 1.0
    """Guidance weight w ≥ 0; 1 is no guidance, which takes one forward pass per evaluation."""
    interval: tuple[float, float] | None = None
    """(t_lo, t_hi): guide only steps that start in this interval (Kynkäänniemi et al. 2024). None guides all steps."""

    def __post_init__(self) -> None:
        require(0 <= self.scale < math.inf, "scale", self.scale, "≥ 0")
        if self.interval is not None:
            low, high = self.interval
            require(0 <= low < high <= 1, "interval", self.interval, "(t_lo, t_hi) with 0 ≤ t_lo < t_hi ≤ 1")

    def active(self, time: float) -> bool:
        """Whether a step that starts at this time is guided."""
        return self.scale != 1.0 and (self.interval is None or self.interval[0] <= time <= self.interval[1])


class Evaluation(NamedTuple):
    """One evaluation of the model, guided or not."""

    guided: Prediction
    conditional: Prediction
    forward_passes: int
    """Forward passes: 1, or 2 (in one batch) where guidance was active."""


def _twice(t: Tensor | TimestepLevels) -> Tensor | TimestepLevels:
    """Repeat timesteps for the conditional and the unconditional half of a batch."""
    if isinstance(t, TimestepLevels):
        return TimestepLevels(torch.cat([t.values, t.values]), torch.cat([t.index, t.index]))
    return torch.cat([t, t])


def evaluate(
    model: Denoiser, x: Tensor, t: Tensor | TimestepLevels, y: Tensor, guidance: Guidance, *, step_time: float
) -> Evaluation:
    """Evaluate the model at x (B, C, H, W) and t for classes y (B,); a guided evaluation is one batch of twice the
    size.

    `step_time`, the start of the solver's step, decides whether all of the step's evaluations are guided. ValueError
    for guidance on a model that never saw the null class.
    """
    if not guidance.active(step_time):
        prediction = model(x, t, y)
        return Evaluation(prediction, prediction, 1)
    if model.config.class_dropout == 0:
        raise ValueError(
            f"guidance scale {guidance.scale} on a model trained with class_dropout = 0: it never learned the "
            "null class. Use scale 1, or train with class_dropout > 0."
        )
    null = torch.full_like(y, model.config.null_class)
    velocity, log_variance = model(torch.cat([x, x]), _twice(t), torch.cat([y, null]))
    v_c, v_u = velocity.chunk(2)
    if log_variance is None:
        guided, conditional = Prediction(v_u + guidance.scale * (v_c - v_u), None), Prediction(v_c, None)
    else:
        l_c, l_u = log_variance.chunk(2)
        guided = Prediction(v_u + guidance.scale * (v_c - v_u), l_u + guidance.scale * (l_c - l_u))
        conditional = Prediction(v_c, l_c)
    return Evaluation(guided, conditional, 2)
