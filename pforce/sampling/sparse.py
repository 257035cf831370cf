"""Token-sparse evaluations: the patches that do not move keep their keys and values. Approximate."""

from __future__ import annotations

import torch
from torch import Tensor

from pforce import grid
from pforce.flow import Prediction
from pforce.models.layers import KeyValues
from pforce.models.transformer import PatchForcingTransformer, TimestepLevels, flat_rows
from pforce.sampling.guidance import Denoiser, Evaluation, Guidance, evaluate


class SparseSteps:
    """Evaluations of all patches that remember, and of `moving` patches an image that use what was remembered."""

    def __init__(self, model: Denoiser, guidance: Guidance, moving: int) -> None:
        if not isinstance(model, PatchForcingTransformer):
            raise TypeError(f"sparse = True: {type(model).__name__} cannot evaluate some of its tokens")
        self.model = model
        self.guidance, self.moving = guidance, moving
        self.memory: list[KeyValues] = []
        self.rows = torch.empty(0)
        self.known: Tensor | None = None

    def evaluate_all(self, x: Tensor, t: Tensor, y: Tensor, *, step_time: float) -> Evaluation:
        """The step's first evaluation, exact."""
        self.memory = [KeyValues() for _ in range(self.model.config.depth)]
        self.rows = torch.empty(0)
        evaluation = evaluate(_Remembering(self), x, t, y, self.guidance, step_time=step_time)
        self.known = evaluation.guided.log_variance
        return evaluation

    def evaluate_some(self, x: Tensor, t: Tensor, y: Tensor, moving: Tensor, *, step_time: float) -> Evaluation:
        """An inner evaluation at the patches of the mask (B, N), which has as many in every image.

        Elsewhere the velocity is 0 and the log-variance what it was at the step's start.
        """
        if not len(self.rows):
            # Stable, so that the True ones come first in their order; the count is known, so no shape is not.
            tokens = (~moving).long().argsort(dim=1, stable=True)[:, : self.moving]
            passes = 2 if self.guidance.active(step_time) else 1
            self.rows = flat_rows(torch.cat([tokens] * passes), moving.shape[1])
        evaluation = evaluate(_Recalling(self), x, t, y, self.guidance, step_time=step_time)
        velocity, log_variance = evaluation.guided
        assert log_variance is not None
        assert self.known is not None
        at_pixels = grid.to_pixels(moving, self.model.config.patch, *x.shape[-2:])
        self.known = torch.where(at_pixels, log_variance, self.known)
        return evaluation._replace(guided=Prediction(velocity, self.known))


class _Remembering:
    """The model as a denoiser that keeps keys and values."""

    def __init__(self, steps: SparseSteps) -> None:
        self.steps, self.config = steps, steps.model.config

    def __call__(self, x: Tensor, t: Tensor | TimestepLevels, y: Tensor) -> Prediction:
        return self.steps.model(x, t, y, memory=self.steps.memory)


class _Recalling(_Remembering):
    """The model as a denoiser that evaluates the moving patches."""

    def __call__(self, x: Tensor, t: Tensor | TimestepLevels, y: Tensor) -> Prediction:
        assert isinstance(t, Tensor)
        return self.steps.model.forward_tokens(x, t, y, self.steps.rows, self.steps.memory)
