"""The usual timesteps of solvers: S + 1 times from 0 (noise) to 1 (data). Solvers take any others as well."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pforce.base.errors import require, require_one_of

Spacing = Literal["linear", "cosine", "shifted"]
SPACINGS: tuple[Spacing, ...] = ("linear", "cosine", "shifted")


def spaced(steps: int, spacing: Spacing = "linear", *, shift: float = 3.0) -> Tensor:
    """Timesteps rising from 0 to 1, (S + 1,) float64.

    Args:
        steps: number S of steps, ≥ 1.
        spacing: with u = i/S, linear: t = u; cosine: t = 1 − cos(πu/2), short steps near the noise; shifted: t = u / (u
            + shift·(1 − u)) (Esser et al. 2024), short steps near the noise for shift > 1.
        shift: shift of the shifted spacing, > 0.
    """
    require(steps >= 1, "steps", steps, "≥ 1")
    require_one_of("spacing", spacing, SPACINGS)
    require(0 < shift < math.inf, "shift", shift, "> 0")
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    match spacing:
        case "cosine":
            times = 1 - torch.cos(u * math.pi / 2)
        case "shifted":
            times = u / (u + shift * (1 - u))
        case _:
            times = u
    times[-1] = 1.0  # cos(π/2) is 6e-17: the last step ends on the data exactly
    return times
