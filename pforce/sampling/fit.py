"""Samplers fitted to a number of function evaluations, and checked against a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pforce.base.errors import require, require_one_of
from pforce.models.config import ModelConfig
from pforce.sampling.budget import Schedule
from pforce.sampling.samplers import SAMPLERS, SHIFT, Sampler, require_settings
from pforce.sampling.schedule import Spacing


def timesteps_for(
    sampler: str | Callable[..., Tensor],
    num_function_evaluations: int,
    *,
    spacing: Spacing = "linear",
    shift: float = SHIFT,
    **own: Any,
) -> Schedule:
    """The schedule on which `sampler` (a solver or its name) spends the given NFE.

    Where no number of steps spends it exactly, the nearest lower NFE is taken, with a warning.

    Args:
        num_function_evaluations: NFE, function evaluations per image.
        spacing: spacing of the timesteps, as in `pforce.sampling.spaced`.
        shift: shift of the shifted spacing.
        own: the solver's own settings; only those that change its cost matter (inner_steps, start_after).

    FieldError for an unknown solver or setting, or an NFE that is not enough for one step.
    """
    name = sampler if isinstance(sampler, str) else sampler.__name__
    require_one_of("sampler", name, SAMPLERS)
    require_settings(SAMPLERS[name], own)
    if spacing == "shifted":
        own["shift"] = shift
    configured = SAMPLERS[name](num_function_evaluations, spacing=spacing, **own)
    found = configured.schedule()
    if configured.unspent:
        warnings.warn(f"{configured.unspent} in {len(found.timesteps) - 1} steps", stacklevel=2)
    return found


def check_sampler(sampler: Sampler, model: ModelConfig, prefix: str = "") -> None:
    """Raise FieldError where the model cannot be sampled with this sampler.

    Args:
        prefix: beginning of the field's name in the error: `sampler.` for an experiment's sampler.
    """
    without = [name for name, each in SAMPLERS.items() if not each.needs_difficulty_head]
    require(
        model.difficulty_head or not sampler.needs_difficulty_head,
        prefix.rstrip(".") or "sampler",
        sampler.name,
        f"{' or '.join(without)}, as the model has no difficulty head (SiT) and predicts no uncertainty",
    )
    require(
        sampler.guidance.scale == 1 or model.class_dropout > 0,
        f"{prefix}guidance.scale",
        sampler.guidance.scale,
        "1, as the model was trained without label dropout (class_dropout = 0) and never learned the null class",
    )
