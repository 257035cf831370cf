"""Images drawn from a model in batches, each image identified by its index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pforce import seeding
from pforce.sampling.guidance import Denoiser
from pforce.sampling.samplers import Sampler
from pforce.sampling.solvers import Step


class Generated(NamedTuple):
    """A batch of generated images and its cost."""

    images: Tensor
    """Images or latents (B, C, H, W)."""
    num_function_evaluations: int
    """NFE per image."""
    forward_passes: int
    """Forward passes of the model per image (a guided evaluation takes two)."""


def generate(
    model: Denoiser,
    sampler: Sampler,
    labels: Tensor,
    *,
    seed: int,
    batch: int,
    device: torch.device | str,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Generated]:
    """Draw one image per label (M,), `batch` at a time; image i starts from the noise of (seed, i).

    The last batch is drawn in full size and then cut, because the size of a batch changes the rounding of its images.

    Args:
        share: (r, n): draw only the batches r, r + n, r + 2n, …
    """
    shape = (model.config.channels, *model.config.image_size)
    count_all, batch = len(labels), min(batch, len(labels))
    labels = torch.cat([labels, labels[-1:].expand(-count_all % batch)])
    for first in range(share[0] * batch, count_all, share[1] * batch):
        y = labels[first : first + batch].to(device)
        x0 = seeding.noise_for_images(seed, first, len(y), shape, device)
        passes: list[int] = []

        def count(step: Step, passes: list[int] = passes) -> None:
            passes.append(step.forward_passes)

        images = sampler.sample(model, x0, y, seed=seed, first=first, callback=count)
        yield Generated(images[: count_all - first], len(passes), sum(passes))
