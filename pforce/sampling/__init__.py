"""Samplers: guidance, solvers, and budgets of function evaluations."""

from pforce.sampling.budget import Schedule
from pforce.sampling.cost import count_flops
from pforce.sampling.fit import check_sampler, timesteps_for
from pforce.sampling.generation import Generated, generate
from pforce.sampling.guidance import Denoiser, Guidance, evaluate
from pforce.sampling.samplers import (
    SAMPLERS,
    DualLoop,
    Euler,
    LookAhead,
    RandomOrder,
    Range,
    Sampler,
    register,
)
from pforce.sampling.schedule import spaced
from pforce.sampling.solvers import Step, dual_loop, euler, look_ahead, random_order

__all__ = [
    "SAMPLERS", "Denoiser", "DualLoop", "Euler", "Generated", "Guidance", "LookAhead", "RandomOrder", "Range",
    "Sampler", "Schedule", "Step", "check_sampler", "count_flops", "dual_loop", "euler", "evaluate", "generate",
    "look_ahead", "random_order", "register", "spaced", "timesteps_for",
]  # fmt: skip
