"""What an image costs in floating-point operations: counted while the sampler runs, on tensors without data."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from pforce.models.config import ModelConfig
from pforce.models.transformer import PatchForcingTransformer
from pforce.sampling.budget import SOLVERS, SamplerConfig


@cache
def count_flops(model: ModelConfig, sampler: SamplerConfig) -> int:
    """FLOPs of one image: matrix products and convolutions of all forward passes, 2 a multiply-add.

    The sampler itself runs, on the meta device: shapes without values, so nothing is computed. What is not a
    product (norms, activations, modulation, the quantile) is not counted, as is usual.
    """
    timesteps = sampler.schedule().timesteps
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        # The attention's backend does not change the products, and flash-attn cannot be had on every machine.
        network = PatchForcingTransformer(replace(model, attention="sdpa"))
        x0 = torch.empty(1, model.channels, *model.image_size)
        SOLVERS[sampler.name](
            network,
            x0,
            timesteps,
            y=torch.zeros(1, dtype=torch.long),
            guidance=sampler.guidance,
            **sampler.settings,
        )
    return counter.get_total_flops()
