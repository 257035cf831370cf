"""The random numbers of a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pforce import seeding
from pforce.models import PatchForcingTransformer

if TYPE_CHECKING:
    from pforce.training.loop import TrainingSpec


class Draws(NamedTuple):
    """Random numbers of a global batch."""

    t: Tensor
    """Timesteps (B, N)."""
    x0: Tensor
    """Noise (B, C, H, W)."""
    drop: Tensor
    """Mask (B,) bool of the labels that become the null class."""
    flip: Tensor
    """Mask (B,) bool of the images that are mirrored, where the data allow it."""


def draw(spec: TrainingSpec, model: PatchForcingTransformer, step: int, device: torch.device) -> Draws:
    """The random numbers of step `step`, the same on every worker."""
    config, batch = model.config, spec.training.batch
    generator = seeding.generator("training", spec.seed, step, device=device)
    return Draws(
        t=spec.timesteps(batch, config.patches, generator=generator, device=device),
        x0=torch.randn(batch, config.channels, *config.image_size, generator=generator, device=device),
        drop=torch.rand(batch, generator=generator, device=device) < config.class_dropout,
        flip=torch.rand(batch, generator=generator, device=device) < 0.5,
    )
