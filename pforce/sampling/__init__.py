"""Samplers: guidance, solvers, and their budgets of function evaluations."""

from pforce.sampling.budget import Generated, SamplerConfig, Schedule, generate, timesteps_for
from pforce.sampling.guidance import Denoiser, Guidance, evaluate
from pforce.sampling.solvers import Step, euler

__all__ = [
    "Denoiser", "Generated", "Guidance", "SamplerConfig", "Schedule", "Step", "euler", "evaluate", "generate",
    "timesteps_for",
]  # fmt: skip
