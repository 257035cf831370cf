"""The trace of a sampler: timestep and predicted uncertainty of every patch at every evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from pforce import grid
from pforce.sampling.solvers import Step


class Trace:
    """A callback that keeps maps over the h×w patches, on the CPU, for each of a sample's E evaluations.

    Args:
        size: (H, W) of the image.
        patch: side of a patch in pixels.
        images: keep the images too.
    """

    def __init__(self, size: tuple[int, int], patch: int, *, images: bool = False) -> None:
        self.size, self.patch, self.with_images = size, patch, images
        self._timesteps: list[Tensor] = []
        self._sigma: list[Tensor] = []
        self._images: list[Tensor] = []
        self.forward_passes = 0

    def __call__(self, step: Step) -> None:
        self.forward_passes += step.forward_passes
        self._timesteps.append(step.timesteps.float().cpu())
        if step.prediction.log_variance is not None:
            sigma = (step.prediction.log_variance.float() / 2).exp()
            self._sigma.append(grid.pool(sigma, self.patch).cpu())
        if self.with_images:
            self._images.append(step.x.float().cpu())

    def _maps(self, rows: list[Tensor]) -> Tensor:
        h, w = grid.grid_size(*self.size, self.patch)
        return torch.stack(rows, dim=1).unflatten(2, (h, w))

    @property
    def evaluations(self) -> int:
        """Number E of function evaluations so far."""
        return len(self._timesteps)

    @property
    def timesteps(self) -> Tensor:
        """Timestep of each patch after the move that followed the evaluation, (B, E, h, w)."""
        return self._maps(self._timesteps)

    @property
    def sigma(self) -> Tensor | None:
        """Patch mean of σ = exp(guided log-variance / 2), (B, E, h, w); None for a model without a difficulty head."""
        return self._maps(self._sigma) if self._sigma else None

    @property
    def images(self) -> Tensor:
        """The images after each evaluation, (B, E, C, H, W), where they are kept."""
        return torch.stack(self._images, dim=1)
