"""Floating-point operations per image, counted by running the sampler on a model without weights."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pforce.flow import Prediction
from pforce.models.config import ModelConfig
from pforce.models.flops import forward_flops
from pforce.models.transformer import TimestepLevels
from pforce.sampling.samplers import Sampler


class _Meter:
    """A substitute for a model that adds up the FLOPs of each forward pass and predicts zeros."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.flops = 0

    def __call__(self, x: Tensor, t: Tensor | TimestepLevels, y: Tensor, /) -> Prediction:
        times = t.values if isinstance(t, TimestepLevels) else t
        self.flops += len(x) * forward_flops(self.config, times[0].numel())
        log_variance = torch.zeros_like(x[:, :1]) if self.config.difficulty_head else None
        return Prediction(torch.zeros_like(x), log_variance)


@cache
def count_flops(model: ModelConfig, sampler: Sampler) -> int:
    """FLOPs per image over all forward passes (see `forward_flops`). The sampler itself runs: its passes depend on its
    settings alone, never on values."""
    meter = _Meter(model)
    x0, y = torch.zeros(1, model.channels, *model.image_size), torch.zeros(1, dtype=torch.long)
    sampler.solve(meter, x0, sampler.schedule().timesteps, y=y)
    return meter.flops
