"""The patch grid: cuts images into patches, puts them together, and converts between patches and pixels.

An image or latent (B, C, H, W) has an h×w grid of p×p patches, h = H/p, w = W/p; patch n = row·w + column (row-major).
No other module depends on the layout of patches.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "max", "min"]
POOLINGS: tuple[Pooling, ...] = ("mean", "max", "min")


def grid_size(height: int, width: int, patch: int) -> tuple[int, int]:
    """(h, w) of the patch grid. ValueError where the patch does not divide the image."""
    if height % patch or width % patch:
        raise ValueError(f"patch {patch} does not divide an image of {height}×{width}")
    return height // patch, width // patch


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images into patches: (B, C, H, W) → (B, N, p·p·C), each patch's values ordered (row, column, channel),
    channel fastest. ValueError as in `grid_size`."""
    b, c, height, width = images.shape
    h, w = grid_size(height, width, patch)
    cells = images.reshape(b, c, h, patch, w, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Put patches together, the inverse of `patchify`: (B, N, p·p·C) → (B, C, H, W). ValueError where N is not the
    grid's."""
    h, w = grid_size(height, width, patch)
    b, n, values = tokens.shape
    if n != h * w:
        raise ValueError(f"{n} tokens for a grid of {h}×{w} patches")
    cells = tokens.reshape(b, h, w, patch, patch, values // patch**2)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)


def to_pixels(per_patch: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Spread one value per patch (B, N) over its pixels: (B, 1, H, W). One value per sample (B,) becomes (B, 1, 1, 1),
    which broadcasts."""
    if per_patch.ndim == 1:
        return per_patch[:, None, None, None]
    h, w = grid_size(height, width, patch)
    cells = per_patch.reshape(-1, 1, h, 1, w, 1).expand(-1, 1, h, patch, w, patch)
    return cells.reshape(-1, 1, height, width)


def pool(pixels: Tensor, patch: int, pooling: Pooling = "mean") -> Tensor:
    """The mean, maximum or minimum over each patch and all channels: (B, C, H, W) → (B, N)."""
    values = patchify(pixels, patch)  # (B, N, p·p·C)
    match pooling:
        case "mean":
            return values.mean(dim=-1)
        case "max":
            return values.amax(dim=-1)
        case "min":
            return values.amin(dim=-1)
    raise ValueError(f"pooling {pooling!r}: must be mean, max or min")


def sincos_positions(width: int, h: int, w: int) -> Tensor:
    """Fixed 2-D sin-cos positions, (1, h·w, D) float32 (Vaswani et al. 2017, in two dimensions as in MAE).

    The first half of the D channels comes from the column, the second from the row; in each half sin then
    cos, at frequencies 10000^(−k/(D/4)). D must be a multiple of 4.
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    halves = []
    for coordinate in (columns, rows):
        angles = coordinate.reshape(-1, 1).to(torch.float64) * frequencies  # (N, D/4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).to(torch.float32)[None]
