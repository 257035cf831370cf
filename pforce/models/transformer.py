"""The Patch Forcing Transformer; SiT is the same class with one timestep per sample and no difficulty head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pforce import grid
from pforce.flow import Prediction
from pforce.models.attention import attention_function
from pforce.models.config import ModelConfig
from pforce.models.interpolation import (
    CHECKED_CLASSES,
    NODES,
    TOLERANCE,
    chebyshev_nodes,
    lagrange_weights,
    modulation_errors,
)
from pforce.models.layers import Block, Conditioning, FinalLayer, LabelEmbedder, PatchEmbedder, TimestepEmbedder


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
    modulation_nodes: int | None = None
    """Number K of nodes of interpolated modulation; 0: exact. None: found by the forward, again after each change of
    the weights. A training sets it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        attend = attention_function(config.attention, config.width // config.heads)
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
        self._found: tuple[int, int] = (-1, 0)
        """Version of the weights, and the number of nodes that fits them."""

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch

    @property
    def null_class(self) -> int:
        """Index of the class that stands for "no class"."""
        return self.config.null_class

    def modulation_layers(self) -> list[nn.Linear]:
        """The linear layers whose outputs are the modulations, one per block, and the final layer's."""
        return [module.adaLN_modulation[1] for module in (*self.blocks, self.final_layer)]

    def modulation_errors(
        self, counts: Sequence[int], gather: Callable[[Tensor], Tensor] = lambda parameter: parameter
    ) -> list[list[float]]:
        """Relative errors of interpolated modulations with these weights, for each number of nodes and each layer; the
        last layer is the final one.

        Args:
            gather: makes a parameter whole where it is sharded; all workers must call this then.
        """
        parts = {name: gather(value).detach().double() for name, value in self.t_embedder.named_parameters()}
        table = gather(self.y_embedder.embedding_table.weight).detach().double()
        classes = torch.linspace(0, self.null_class, min(CHECKED_CLASSES, len(table)), device=table.device).long()
        return modulation_errors(
            lambda t: functional_call(self.t_embedder, parts, (t,)), table[classes],
            self.modulation_layers(), counts, gather=gather,
        )  # fmt: skip

    def fit_modulation(
        self,
        fewest: int = NODES[0],
        *,
        tolerance: float = TOLERANCE,
        gather: Callable[[Tensor], Tensor] = lambda parameter: parameter,
        agree: Callable[[float], float] = lambda error: error,
    ) -> tuple[int, float]:
        """The fewest nodes with which interpolated modulations agree with exact ones, and their largest relative error.
        (0, 0.0), for exact modulations, where even the most nodes do not, or where the configuration wants them.

        Args:
            fewest: number of nodes that is tried first; 0 gives exact modulations.
            gather: as in `modulation_errors`.
            agree: makes one error of those of several workers, which decide together.
        """
        if self.config.modulation == "exact" or not self.config.difficulty_head or not fewest:
            return 0, 0.0
        for count in (each for each in NODES if each >= fewest):
            (errors,) = self.modulation_errors([count], gather)
            found = agree(max(errors) if all(map(math.isfinite, errors)) else math.inf)
            if found <= tolerance:
                return count, found
        return 0, 0.0

    def _nodes(self) -> int:
        """Number of nodes for these weights."""
        if self.modulation_nodes is not None:
            return self.modulation_nodes
        if not torch.compiler.is_compiling():
            parts = (self.t_embedder, self.y_embedder, *self.modulation_layers())
            values = (value for part in parts for value in part.parameters())
            version = hash(tuple((id(value), 0 if value.is_inference() else value._version) for value in values))
            if self._found[0] != version:
                self._found = version, self.fit_modulation()[0]
        return self._found[1]

    def _levels(self, t: Tensor | TimestepLevels) -> tuple[Tensor, Tensor | None]:
        """Timesteps as (B, K) values, and how they spread over the tokens, as in `pforce.models.layers.at_tokens`."""
        if isinstance(t, TimestepLevels):
            if t.values.shape[1] == 1:
                return t.values, None  # one level broadcasts over the tokens: nothing to gather
            if not self.config.difficulty_head:
                raise ValueError(f"{t.values.shape[1]} timestep levels: a SiT takes one timestep per sample, (B,)")
            return t.values, flat_rows(t.index, t.values.shape[1])
        if t.ndim == 1:
            return t[:, None], None
        if not self.config.difficulty_head:
            raise ValueError(f"t has shape {tuple(t.shape)}: a SiT takes one timestep per sample, (B,)")
        if t.shape[1] != self.config.patches:
            raise ValueError(f"t has shape {tuple(t.shape)}: must be (B,) or (B, {self.config.patches})")
        nodes = self._nodes()
        if 0 < nodes < self.config.patches:
            return chebyshev_nodes(nodes, t.device).float()[None], lagrange_weights(t, nodes)
        return t, None

    def _conditioning(self, t: Tensor | TimestepLevels, y: Tensor) -> Conditioning:
        """The input of all modulations, computed for as few timesteps and classes as there are."""
        values, spread = self._levels(t)
        table = self.y_embedder.embedding_table.weight
        of_nodes = len(values) == 1 < len(y)  # the same timesteps for all images
        if of_nodes and 2 * len(table) <= len(y):
            return Conditioning(F.silu(self.t_embedder(values) + table[:, None]), spread, y)
        return Conditioning(F.silu(self.t_embedder(values) + self.y_embedder(y)[:, None]), spread)

    def forward(self, x: Tensor, t: Tensor | TimestepLevels, y: Tensor) -> Prediction:
        """The velocity at x_t and its log-variance. ValueError for timesteps of another shape.

        Args:
            x: x_t, (B, C, H, W).
            t: timesteps (B,), (B, N), or `TimestepLevels`.
            y: classes (B,) int64; `null_class` for none.
        """
        given = self._conditioning(t, y)
        tokens = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens, given)
        patches = self.final_layer(tokens, given)
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
    for layer in (*model.modulation_layers(), model.final_layer.linear):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def build(config: ModelConfig, *, generator: torch.Generator | None = None) -> PatchForcingTransformer:
    """A freshly initialised model on the CPU. The generator makes the weights reproducible."""
    model = PatchForcingTransformer(config)
    _initialise(model, generator)
    return model
