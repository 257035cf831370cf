"""Layers of a DiT whose modulations are computed once per distinct timestep.

Modulations come in three shapes. (B, N, D), one per token, and (B, 1, D), one per sample, broadcast without `spread`;
(B, K, D), one per *level* or node, is spread over the tokens by `spread`: the row of each token, or its weights. After
that the arithmetic is the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pforce.models.attention import AttentionFunction

TIME_FEATURES = 256
MAX_PERIOD = 10_000.0


def sinusoidal_features(t: Tensor) -> Tensor:
    """Sinusoidal features of times: (…) → (…, 256) float32, cos then sin of the raw t, periods up to 10000; of float64,
    float64."""
    half, t = TIME_FEATURES // 2, t if t.dtype == torch.float64 else t.float()
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = t[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def at_tokens(per_level: Tensor, spread: Tensor | None) -> Tensor:
    """Spread (B, K, D) over the tokens, (B, N, D); unchanged without `spread`.

    Whole rows are copied or mixed, for one part of the modulation at a time and just before its use, so that on a CPU
    they are still in the cache: gathering all six parts element by element takes a tenth of a forward pass.

    Args:
        spread: (B·N,) int64, the flat row b·K + level of each token; or (B, N, K), weights of its image's rows.
    """
    if spread is None:
        return per_level
    if spread.ndim == 3:
        return torch.bmm(spread.to(per_level.dtype), per_level)
    b, _, d = per_level.shape
    return per_level.reshape(-1, d).index_select(0, spread).view(b, -1, d)


class Conditioning(NamedTuple):
    """The input of all modulations of a forward pass."""

    activated: Tensor
    """SiLU of the embedded timesteps and classes: (B, N, D), (B, 1, D) or (B, K, D); or (C + 1, K, D) for all classes
    and nodes."""
    spread: Tensor | None = None
    """Spreads levels or nodes over the tokens, as in `at_tokens`."""
    classes: Tensor | None = None
    """Class of each image, (B,) int64, where `activated` has a row per class."""

    def modulations(self, layer: nn.Module) -> Tensor:
        """Outputs of a modulation layer, (B, 1, N or K, parts · D)."""
        found: Tensor = layer(self.activated)
        if self.classes is None:
            return found
        return F.embedding(self.classes, found.flatten(1)).unflatten(-1, found.shape[1:])


def modulate(x: Tensor, shift: Tensor, scale: Tensor, spread: Tensor | None) -> Tensor:
    """x·(1 + scale) + shift: x is (B, N, D); shift and scale are one per token, sample, level or node."""
    if spread is not None and spread.ndim == 3:  # one pass less over the tokens
        return torch.baddbmm(x * at_tokens(1 + scale, spread), spread.to(shift.dtype), shift)
    return torch.addcmul(at_tokens(shift, spread), x, at_tokens(1 + scale, spread))


class TimestepEmbedder(nn.Module):
    """Embedding of timesteps: 256 sinusoidal features → Linear → SiLU → Linear, (…) → (…, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoidal_features(t))


class LabelEmbedder(nn.Module):
    """Embedding of classes: a table of classes + 1 rows, the last one for "no class", (B,) → (B, D)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class PatchEmbedder(nn.Module):
    """Embedding of patches: a p×p convolution with stride p, (B, C, H, W) → (B, N, D)."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with a bias on q, k, v (packed in this order): (B, N, D) → (B, N, D)."""

    def __init__(self, width: int, heads: int, attend: AttentionFunction) -> None:
        super().__init__()
        self.heads = heads
        self.attend = attend
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    """Linear → tanh GELU → Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulation_layers(width: int, parts: int) -> nn.Sequential:
    """SiLU → Linear, the published `adaLN_modulation`. The model applies the SiLU once for all blocks, which run only
    the Linear; the SiLU is kept for the names of the parameters."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Block(nn.Module):
    """An adaLN-Zero transformer block (Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, attend: AttentionFunction) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, attend)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = modulation_layers(width, 6)

    def forward(self, x: Tensor, given: Conditioning) -> Tensor:
        """Apply the block to x (B, N, D)."""
        spread = given.spread
        # Order of the six: shift, scale, gate of the attention, then of the MLP.
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = given.modulations(self.adaLN_modulation[1]).chunk(6, -1)
        attended = self.attn(modulate(self.norm1(x), shift_a, scale_a, spread))
        x = torch.addcmul(x, at_tokens(gate_a, spread), attended)
        mixed = self.mlp(modulate(self.norm2(x), shift_m, scale_m, spread))
        return torch.addcmul(x, at_tokens(gate_m, spread), mixed)


class FinalLayer(nn.Module):
    """The last layer: LayerNorm, shift and scale, Linear to the p²·outputs values of a patch, channel fastest."""

    def __init__(self, width: int, patch: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch * patch * outputs)
        self.adaLN_modulation = modulation_layers(width, 2)

    def forward(self, x: Tensor, given: Conditioning) -> Tensor:
        shift, scale = given.modulations(self.adaLN_modulation[1]).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale, given.spread))
