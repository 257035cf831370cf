"""Floating-point operations of a forward pass, from the configuration alone."""

from __future__ import annotations

from pforce.models.config import ModelConfig
from pforce.models.layers import TIME_FEATURES


def forward_flops(config: ModelConfig, timesteps: int, *, interpolated: bool = False) -> int:
    """FLOPs of one forward pass of one image: matrix products and convolutions, 2 per multiply-add.

    Other operations (norms, activations, modulation, softmax) are not counted, as is usual.

    Args:
        timesteps: distinct timesteps per image for which modulations are computed: 1, the number of levels, or the
            number of patches.
        interpolated: modulations are interpolated between so many timesteps.
    """
    n, d, area = config.patches, config.width, config.patch**2
    outputs = area * (config.channels + (1 if config.difficulty_head else 0))
    embeddings = n * area * config.channels * d + timesteps * (TIME_FEATURES * d + d * d)
    attention = n * 3 * d * d + 2 * n * n * d + n * d * d
    mlp = 2 * n * d * int(d * config.mlp_ratio)
    block = attention + mlp + timesteps * d * 6 * d
    final = n * d * outputs + timesteps * d * 2 * d
    spread = n * timesteps * (d * (6 * config.depth + 2) + timesteps) if interpolated else 0
    return 2 * (embeddings + config.depth * block + final + spread)
