"""The Patch Forcing Transformer; SiT is the same class with one timestep per sample and no difficulty head."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pforce import grid
from pforce.flow import Prediction
from pforce.models.attention import attention_function
from pforce.models.config import ModelConfig
from pforce.models.layers import Block, FinalLayer, LabelEmbedder, PatchEmbedder, TimestepEmbedder


class TimestepLevels(NamedTuple):
    """Patch timesteps of which an image has only a few distinct ones.

    Per-token modulation costs 6D² multiply-adds per token on top of the 12D² of everything else. A sampler knows the K
    distinct timesteps of an image, so modulations are computed K times and gathered: the same numbers for nearly the
    plain SiT's cost. Shapes depend on K alone, never on the data.
    """

    values: Tensor
    """The distinct timesteps, (B, K)."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which is not used
    """Index into `values` of each patch, (B, N) int64."""


def flat_rows(index: Tensor, rows: int) -> Tensor:
    """Flatten positions (B, N) among the `rows` of each image to positions (B·N,) among all B·rows."""
    return (index + rows * torch.arange(len(index), device=index.device)[:, None]).flatten()


class PatchForcingTransformer(nn.Module):
    """DiT/SiT backbone with one timestep per patch and a difficulty head. `build` makes it."""

    pos_embed: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        attend = attention_function(config.attention)
        h, w = grid.grid_size(*config.image_size, config.patch)
        outputs = config.channels + (1 if config.difficulty_head else 0)
        self.x_embedder = PatchEmbedder(config.patch, config.channels, config.width)
        self.register_buffer("pos_embed", grid.sincos_positions(config.width, h, w))
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = LabelEmbedder(config.classes, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, attend) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(config.width, config.patch, outputs)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch

    @property
    def null_class(self) -> int:
        """Index of the class that stands for "no class"."""
        return self.config.null_class

    def _levels(self, t: Tensor | TimestepLevels) -> tuple[Tensor, Tensor | None]:
        """Timesteps as (B, K) values and the index that spreads them over the tokens (None: they broadcast)."""
        if isinstance(t, TimestepLevels):
            if t.values.shape[1] == 1:
                return t.values, None  # one level broadcasts over the tokens: nothing to gather
            if not self.config.difficulty_head:
                raise ValueError(f"{t.values.shape[1]} timestep levels: a SiT takes one timestep per sample, (B,)")
            return t.values, t.index
        if t.ndim == 1:
            return t[:, None], None
        if not self.config.difficulty_head:
            raise ValueError(f"t has shape {tuple(t.shape)}: a SiT takes one timestep per sample, (B,)")
        if t.shape[1] != self.config.patches:
            raise ValueError(f"t has shape {tuple(t.shape)}: must be (B,) or (B, {self.config.patches})")
        return t, None

    def forward(self, x: Tensor, t: Tensor | TimestepLevels, y: Tensor) -> Prediction:
        """The velocity at x_t and its log-variance. ValueError for timesteps of another shape.

        Args:
            x: x_t, (B, C, H, W).
            t: timesteps (B,), (B, N), or `TimestepLevels`.
            y: classes (B,) int64; `null_class` for none.
        """
        values, index = self._levels(t)
        rows = None if index is None else flat_rows(index, values.shape[1])
        activated = F.silu(self.t_embedder(values) + self.y_embedder(y)[:, None])  # (B, K, D)
        tokens = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens, activated, rows)
        patches = self.final_layer(tokens, activated, rows)
        pixels = grid.unpatchify(patches, self.config.patch, x.shape[-2], x.shape[-1])
        if not self.config.difficulty_head:
            return Prediction(pixels, None)
        return Prediction(pixels[:, :-1], pixels[:, -1:])


def _initialise(model: PatchForcingTransformer, generator: torch.Generator | None) -> None:
    """Initialise in place: Xavier-uniform linears, zero biases, zero adaLN and final layers, N(0, 0.02²) embeddings."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    projection = model.x_embedder.proj
    # The convolution is a linear layer on flattened patches and is initialised as one.
    nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1), generator=generator)
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    nn.init.normal_(model.y_embedder.embedding_table.weight, std=0.02, generator=generator)
    for parameter in model.t_embedder.mlp.parameters():
        if parameter.ndim == 2:  # the weights; biases are zero already
            nn.init.normal_(parameter, std=0.02, generator=generator)
    modulations = [module.adaLN_modulation[1] for module in (*model.blocks, model.final_layer)]
    for layer in (*modulations, model.final_layer.linear):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def build(config: ModelConfig, *, generator: torch.Generator | None = None) -> PatchForcingTransformer:
    """A freshly initialised model on the CPU. The generator makes the weights reproducible."""
    model = PatchForcingTransformer(config)
    _initialise(model, generator)
    return model
