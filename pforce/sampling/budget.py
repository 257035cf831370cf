"""How many steps a given number of function evaluations (NFE) buys."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pforce.sampling.schedule import Spacing, spaced


class Schedule(NamedTuple):
    """Timesteps for a solver and what they cost."""

    timesteps: Tensor
    """(S + 1,) from 0 to 1, float64."""
    num_function_evaluations: int
    """The NFE that a sample costs; at most what was asked for."""


def affordable(
    cost: Callable[[Tensor], int], num_function_evaluations: int, spacing: Spacing, shift: float
) -> Schedule | None:
    """The grid with the most steps that costs no more than the given NFE; None where one step costs more.

    Args:
        cost: function evaluations on a grid: at least one a step, and never fewer on a grid of more steps.
    """
    for steps in range(num_function_evaluations, 0, -1):
        times = spaced(steps, spacing, shift=shift)
        if (spent := cost(times)) <= num_function_evaluations:
            return Schedule(times, spent)
    return None
