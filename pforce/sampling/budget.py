"""Schedules for a given number of function evaluations (NFE)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pforce.sampling.schedule import Spacing, spaced


class Schedule(NamedTuple):
    """Timesteps for a solver and their cost."""

    timesteps: Tensor
    """Timesteps from 0 to 1, (S + 1,) float64."""
    num_function_evaluations: int
    """NFE per image; at most the number asked for."""


def affordable(
    cost: Callable[[Tensor], int], num_function_evaluations: int, spacing: Spacing, shift: float
) -> Schedule | None:
    """The schedule with the most steps that costs no more than the given NFE; None where one step costs more.

    Args:
        cost: function evaluations on given timesteps: at least one per step, and never fewer for more steps.
    """
    for steps in range(num_function_evaluations, 0, -1):
        times = spaced(steps, spacing, shift=shift)
        if (spent := cost(times)) <= num_function_evaluations:
            return Schedule(times, spent)
    return None
