"""Solvers of the flow's ODE: plain functions (model, x0, timesteps, *, y, …) → x1 that honour every timestep given."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pforce.flow import Prediction
from pforce.sampling.guidance import Denoiser, Guidance, evaluate


class Step(NamedTuple):
    """What a callback sees after a step."""

    number: int
    """Of the step, from 0."""
    t_start: float
    t_end: float
    x: Tensor
    """(B, C, H, W) after the step."""
    prediction: Prediction
    """The guided prediction at the step's start."""
    forward_passes: int
    """Forward passes of the model in this step."""


Callback = Callable[[Step], None]

NO_GUIDANCE = Guidance()


@torch.no_grad()
def euler(
    model: Denoiser,
    x0: Tensor,
    timesteps: Tensor,
    *,
    y: Tensor,
    guidance: Guidance = NO_GUIDANCE,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method with one timestep for all patches; one function evaluation a step.

    Args:
        x0: noise (B, C, H, W). timesteps: (S + 1,) rising from 0 to 1. y: classes (B,).
        generator: unused, as Euler draws nothing; every solver takes one.
    """
    del generator
    x = x0
    times = timesteps.tolist()
    for number, (start, end) in enumerate(itertools.pairwise(times)):
        t = torch.full((x.shape[0],), start, device=x.device, dtype=torch.float32)
        evaluation = evaluate(model, x, t, y, guidance, step_time=start)
        x = x + (end - start) * evaluation.guided.velocity
        if callback is not None:
            callback(Step(number, start, end, x, evaluation.guided, evaluation.forward_passes))
    return x
