"""Model configurations and the table of sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pforce.base.errors import require

Attention = Literal["sdpa", "flash"]
Modulation = Literal["interpolated", "exact"]
MODULATIONS: tuple[Modulation, ...] = ("interpolated", "exact")
ATTENTIONS: tuple[Attention, ...] = ("sdpa", "flash")


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a PFT, or with `difficulty_head = False` of a plain SiT."""

    depth: int = 12
    """Number of transformer blocks."""
    width: int = 768
    """Width D of a token, a multiple of 4 (positions) and of the number of heads."""
    heads: int = 12
    """Attention heads; must divide the width."""
    patch: int = 2
    """Side p of a patch, in pixels of the image or latent."""
    image_size: tuple[int, int] = (32, 32)
    """(height, width) of the image or latent, multiples of the patch."""
    channels: int = 4
    """Channels C of the image or latent."""
    classes: int = 1000
    """Number of classes; one null class is added (its index is `classes`)."""
    difficulty_head: bool = True
    """Predict the velocity's log-variance at each pixel (PFT). False is SiT: one timestep per sample."""
    class_dropout: float = 0.1
    """Share of training labels replaced by the null class, in [0, 1); guidance needs a share above 0."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP divided by the width."""
    attention: Attention = "sdpa"
    """sdpa: torch's scaled_dot_product_attention. flash: the flash-attn package (extra `cuda`), checked at start."""
    modulation: Modulation = "interpolated"
    """Modulations where each token has its own timestep. interpolated: between as many nodes as agree with exact ones
    to rounding (1e-6 in float32), at the price of a plain SiT. exact: for each token, half as slow again."""

    def __post_init__(self) -> None:
        require(self.depth > 0, "depth", self.depth, "> 0 blocks")
        require(self.width > 0 and self.width % 4 == 0, "width", self.width, "a positive multiple of 4")
        require(
            self.heads > 0 and self.width % self.heads == 0, "heads", self.heads, f"a divisor of the width {self.width}"
        )
        require(self.patch > 0, "patch", self.patch, "> 0 pixels")
        require(
            all(side > 0 and side % self.patch == 0 for side in self.image_size),
            "image_size",
            self.image_size,
            f"multiples of the patch {self.patch}",
        )
        require(self.channels > 0, "channels", self.channels, "> 0")
        require(self.classes > 0, "classes", self.classes, "> 0")
        require(0 <= self.class_dropout < 1, "class_dropout", self.class_dropout, "in [0, 1)")
        require(0 < self.mlp_ratio < 64, "mlp_ratio", self.mlp_ratio, "in (0, 64)")
        require(self.attention in ATTENTIONS, "attention", self.attention, "sdpa or flash")
        require(self.modulation in MODULATIONS, "modulation", self.modulation, "interpolated or exact")

    @property
    def patches(self) -> int:
        """Number N of patches per image."""
        return (self.image_size[0] // self.patch) * (self.image_size[1] // self.patch)

    @property
    def null_class(self) -> int:
        """Index of the class that stands for "no class"."""
        return self.classes


class Size(NamedTuple):
    """A row of the table of sizes."""

    depth: int
    width: int
    heads: int


SIZES = {
    "micro": Size(4, 128, 4),  # for CPUs; 1.3 M parameters at patch 4 on 32×32×3
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}
"""Depth, width and heads by name (Peebles & Xie 2023; the micro is ours)."""


def sized(size: str, **fields: Any) -> ModelConfig:
    """The `ModelConfig` of a named size with the other fields as given. KeyError for an unknown name."""
    return ModelConfig(**SIZES[size]._asdict(), **fields)
