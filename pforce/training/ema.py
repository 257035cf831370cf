"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pforce.training.strategy import local

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """An averaged copy of a model, always in eval mode.

    After the update of step k (from 0): average ← d·average + (1 − d)·weights, d = decay, or with warm-up min(decay, (1
    + k)/(10 + k)). The step is passed in, so a resumed training continues the same sequence.
    """

    def __init__(self, model: M, *, decay: float, warmup: bool) -> None:
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.warmup = warmup

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Update the average with the weights after step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        averages: list[Tensor] = [local(parameter) for parameter in self.model.parameters()]
        weights: list[Tensor] = [local(parameter) for parameter in model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
