"""Solvers of the flow's ODE: plain functions (model, x0, timesteps, *, y, …) → x1 that use exactly the given timesteps.

No shape in them depends on data: the patches that move are a mask, and the distinct timesteps of an evaluation are
`TimestepLevels` that the solver knows. So they run under torch.compile and CUDA graphs; no result of an evaluation is
read after the next one, because a CUDA graph overwrites it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pforce import grid
from pforce.base.errors import require
from pforce.flow import Prediction
from pforce.models.transformer import TimestepLevels
from pforce.sampling.confidence import (
    Generators,
    confident_count,
    confident_patches,
    random_patches,
    require_share,
    require_threshold,
    uncertainty,
)
from pforce.sampling.guidance import Denoiser, Guidance, evaluate

TIME_TOLERANCE = 1e-7
"""Tolerance of comparisons of times: times in float32 are rounded by up to 6e-8."""


class Step(NamedTuple):
    """One function evaluation and the move after it, as a callback gets them."""

    number: int
    """Number of the solver's step, from 0."""
    evaluation: int
    """Number of the evaluation within the step, from 0."""
    t_start: float
    """Time at which the solver's step begins."""
    t_end: float
    x: Tensor
    """The image (B, C, H, W) after the move; after look_ahead's first evaluation, the image with its context."""
    timesteps: Tensor
    """Timesteps (B, N) of the patches of x."""
    prediction: Prediction
    """The guided prediction before the move. Copy what you keep: a CUDA graph reuses its memory."""
    confident: Tensor | None
    """The step's confident patches, (B, N) bool; None where all patches move alike."""
    forward_passes: int
    """Forward passes of the model in this evaluation: 1, or 2 where guidance was active."""


Callback = Callable[[Step], None]

NO_GUIDANCE = Guidance()


def _require_head(model: Denoiser, solver: str) -> None:
    if not model.config.difficulty_head:
        raise ValueError(
            f"{solver} on a model without a difficulty head (SiT): it predicts no uncertainty, and takes one timestep "
            "for all patches. Use euler, or a PFT."
        )


def _times(x: Tensor, time: float) -> Tensor:
    return torch.full((x.shape[0],), time, device=x.device, dtype=torch.float32)


def _levels(x: Tensor, first: float, second: float, is_second: Tensor) -> TimestepLevels:
    """Two timesteps per image: `second` where the mask (B, N) is set, `first` elsewhere."""
    return TimestepLevels(torch.stack([_times(x, first), _times(x, second)], dim=1), is_second.long())


def _spread(x: Tensor, first: float, second: float, is_second: Tensor) -> Tensor:
    """Timesteps (B, N) for callbacks: `second` where the mask is set, `first` elsewhere."""
    return torch.where(is_second, second, torch.full(is_second.shape, first, device=x.device))


@torch.no_grad()
def euler(
    model: Denoiser,
    x0: Tensor,
    timesteps: Tensor,
    *,
    y: Tensor,
    guidance: Guidance = NO_GUIDANCE,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method with one timestep for all patches; one function evaluation per step.

    Args:
        x0: noise (B, C, H, W).
        timesteps: (S + 1,) rising from 0 to 1.
        y: classes (B,).
        generator: unused, as nothing is drawn; every solver takes one.
        callback: called after each evaluation.
    """
    del generator
    x = x0
    for number, (start, end) in enumerate(itertools.pairwise(timesteps.tolist())):
        evaluation = evaluate(model, x, _times(x, start), y, guidance, step_time=start)
        x = x + (end - start) * evaluation.guided.velocity
        if callback is not None:
            after = torch.full((x.shape[0], model.config.patches), end, device=x.device)
            callback(Step(number, 0, start, end, x, after, evaluation.guided, None, evaluation.forward_passes))
    return x


Choose = Callable[[Prediction], Tensor]
"""Function from a prediction to its confident patches (B, N) bool."""


def _two_speeds(
    model: Denoiser,
    x0: Tensor,
    timesteps: Tensor,
    choose: Choose,
    *,
    y: Tensor,
    guidance: Guidance,
    inner_steps: int,
    callback: Callback | None,
) -> Tensor:
    """Solve with two speeds: the chosen patches take each step at once, the others in K equal parts with the chosen
    ones ahead."""
    require(inner_steps >= 1, "inner_steps", inner_steps, "≥ 1")
    height, width = x0.shape[-2:]
    x = x0
    for number, (start, end) in enumerate(itertools.pairwise(timesteps.tolist())):
        dt = end - start
        evaluation = evaluate(model, x, _times(x, start), y, guidance, step_time=start)
        confident = choose(evaluation.guided)
        at_pixels = grid.to_pixels(confident, model.config.patch, height, width)
        share = torch.where(at_pixels, dt, dt / inner_steps)
        for inner in range(inner_steps):
            reached = start + inner * dt / inner_steps
            if inner:
                share = torch.where(at_pixels, 0.0, dt / inner_steps)
                levels = _levels(x, reached, end, confident)
                evaluation = evaluate(model, x, levels, y, guidance, step_time=start)
            x = x + share * evaluation.guided.velocity
            if callback is not None:
                after = _spread(x, start + (inner + 1) * dt / inner_steps, end, confident)
                told = (x, after, evaluation.guided, confident, evaluation.forward_passes)
                callback(Step(number, inner, start, end, *told))
    return x


@torch.no_grad()
def dual_loop(
    model: Denoiser,
    x0: Tensor,
    timesteps: Tensor,
    *,
    y: Tensor,
    guidance: Guidance = NO_GUIDANCE,
    generator: Generators = None,
    callback: Callback | None = None,
    quantile: float = 0.4,
    inner_steps: int = 4,
    pooling: grid.Pooling = "mean",
    threshold: float | None = None,
) -> Tensor:
    """Confident patches take each step at once, uncertain ones in `inner_steps` parts with that context; K NFE per
    step.

    Args:
        x0, timesteps, y, generator, callback: as in `euler`.
        quantile: patches whose uncertainty lies strictly below this quantile of their image are confident.
        inner_steps: number K of evaluations per step.
        pooling: pooling of the predicted variance over a patch.
        threshold: patches whose variance lies strictly below it are confident, instead of the quantile.

    ValueError for a model without a difficulty head.
    """
    del generator
    _require_head(model, "dual_loop")
    require_share(quantile)
    require_threshold(threshold)

    def choose(prediction: Prediction) -> Tensor:
        u = uncertainty(prediction, model.config.patch, pooling)
        return confident_patches(u, model.config.patch, quantile=quantile, threshold=threshold)

    return _two_speeds(model, x0, timesteps, choose, y=y, guidance=guidance, inner_steps=inner_steps, callback=callback)


@torch.no_grad()
def random_order(
    model: Denoiser,
    x0: Tensor,
    timesteps: Tensor,
    *,
    y: Tensor,
    guidance: Guidance = NO_GUIDANCE,
    generator: Generators = None,
    callback: Callback | None = None,
    quantile: float = 0.4,
    inner_steps: int = 4,
) -> Tensor:
    """The control of `dual_loop`: as many random patches in place of the confident ones.

    Args:
        generator: generator of the masks: one for the batch, or a sequence of one per image. None is torch's global
            one.
    """
    _require_head(model, "random_order")
    require_share(quantile)
    patches = model.config.patches
    count = confident_count(quantile, patches, model.config.patch)

    def choose(prediction: Prediction) -> Tensor:
        return random_patches(torch.Size((x0.shape[0], patches)), count, generator, x0.device)

    return _two_speeds(model, x0, timesteps, choose, y=y, guidance=guidance, inner_steps=inner_steps, callback=callback)


def looks_ahead(time: float, start_after: float) -> bool:
    """Whether look_ahead's step from this time takes a second evaluation."""
    return time > start_after + TIME_TOLERANCE


@torch.no_grad()
def look_ahead(
    model: Denoiser,
    x0: Tensor,
    timesteps: Tensor,
    *,
    y: Tensor,
    guidance: Guidance = NO_GUIDANCE,
    generator: Generators = None,
    callback: Callback | None = None,
    quantile: float = 0.4,
    context_ratio: float = 1.4,
    start_after: float = 0.05,
    pooling: grid.Pooling = "mean",
    threshold: float | None = None,
) -> Tensor:
    """Uncertain patches move with the velocity predicted when the confident ones are shown further denoised.

    Up to `start_after` a step is Euler's with the conditional velocity and takes one evaluation; later steps take two.

    Args:
        x0, timesteps, y, generator, callback: as in `euler`.
        context_ratio: at t the confident patches are shown at min(1, ratio·t).
        quantile, pooling, threshold: as in `dual_loop`.

    ValueError for a model without a difficulty head.
    """
    del generator
    _require_head(model, "look_ahead")
    require_share(quantile)
    require_threshold(threshold)
    require(1 <= context_ratio < math.inf, "context_ratio", context_ratio, "≥ 1")
    require(0 <= start_after <= 1, "start_after", start_after, "in [0, 1]")
    patch, (height, width) = model.config.patch, x0.shape[-2:]
    x = x0
    for number, (start, end) in enumerate(itertools.pairwise(timesteps.tolist())):
        dt = end - start
        if not looks_ahead(start, start_after):
            evaluation = evaluate(model, x, _times(x, start), y, NO_GUIDANCE, step_time=start)  # all that is used
            x = x + dt * evaluation.conditional.velocity
            if callback is not None:
                after = torch.full((x.shape[0], model.config.patches), end, device=x.device)
                callback(Step(number, 0, start, end, x, after, evaluation.guided, None, evaluation.forward_passes))
            continue
        evaluation = evaluate(model, x, _times(x, start), y, guidance, step_time=start)
        u = uncertainty(evaluation.guided, patch, pooling)
        confident = confident_patches(u, patch, quantile=quantile, threshold=threshold)
        at_pixels = grid.to_pixels(confident, patch, height, width)
        context = min(1.0, context_ratio * start)
        shown = torch.where(at_pixels, x + (context - start) * evaluation.conditional.velocity, x)
        moved = x + dt * evaluation.guided.velocity
        if callback is not None:
            after = _spread(x, start, context, confident)
            callback(Step(number, 0, start, end, shown, after, evaluation.guided, confident, evaluation.forward_passes))
        levels = _levels(x, start, context, confident)
        second = evaluate(model, shown, levels, y, guidance, step_time=start)
        x = torch.where(at_pixels, moved, x + dt * second.guided.velocity)
        if callback is not None:
            after = torch.full(confident.shape, end, device=x.device)
            callback(Step(number, 1, start, end, x, after, second.guided, confident, second.forward_passes))
    return x
