"""Samplers: guidance, solvers, and their budgets of function evaluations."""

from pforce.sampling.budget import SOLVERS, Generated, SamplerConfig, Schedule, check_sampler, generate, timesteps_for
from pforce.sampling.cost import count_flops
from pforce.sampling.guidance import Denoiser, Guidance, evaluate
from pforce.sampling.schedule import spaced
from pforce.sampling.solvers import Step, dual_loop, euler, look_ahead, random_order

__all__ = [
    "SOLVERS", "Denoiser", "Generated", "Guidance", "SamplerConfig", "Schedule", "Step", "check_sampler", "count_flops",
    "dual_loop", "euler", "evaluate", "generate", "look_ahead", "random_order", "spaced", "timesteps_for",
]  # fmt: skip
