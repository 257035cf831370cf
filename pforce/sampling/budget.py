"""How many steps a solver may take for a given number of function evaluations (NFE), and a configured solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pforce import seeding
from pforce.sampling.guidance import Denoiser, Guidance
from pforce.sampling.solvers import Step, euler
from pforce.validation import require

Solver = Literal["euler"]
SOLVERS: dict[str, Callable[..., Tensor]] = {"euler": euler}


class Schedule(NamedTuple):
    """Timesteps for a solver and what they cost."""

    timesteps: Tensor
    """(S + 1,) from 0 to 1, float64."""
    num_function_evaluations: int
    """The NFE that a sample costs; at most what was asked for."""


def timesteps_for(sampler: str | Callable[..., Tensor], num_function_evaluations: int, **own: object) -> Schedule:
    """The linear grid on which `sampler` (a solver or its name) spends the given NFE. `own`: the solver's settings."""
    name = sampler if isinstance(sampler, str) else sampler.__name__
    require(name in SOLVERS, "sampler", name, f"one of {', '.join(SOLVERS)}")
    require(num_function_evaluations >= 1, "num_function_evaluations", num_function_evaluations, "≥ 1")
    if own:
        raise ValueError(f"{name} has no setting {', '.join(own)}")
    steps = num_function_evaluations
    return Schedule(torch.linspace(0, 1, steps + 1, dtype=torch.float64), steps)


@dataclass(frozen=True)
class SamplerConfig:
    """The sampler of an experiment's evaluation."""

    name: Solver = "euler"
    """Solver of the flow's ODE."""
    num_function_evaluations: int = 24
    """NFE: guided evaluations of the model an image."""
    guidance: Guidance = field(default_factory=Guidance)
    """Classifier-free guidance."""

    def __post_init__(self) -> None:
        require(self.name in SOLVERS, "name", self.name, f"one of {', '.join(SOLVERS)}")
        require(self.num_function_evaluations >= 1, "num_function_evaluations", self.num_function_evaluations, "≥ 1")


class Generated(NamedTuple):
    """A batch of generated images and what it cost."""

    images: Tensor
    """(B, C, H, W)."""
    num_function_evaluations: int
    """NFE spent an image."""
    forward_passes: int
    """Forward passes of the model an image (guidance makes two of one evaluation)."""


def generate(
    model: Denoiser, config: SamplerConfig, labels: Tensor, *, seed: int, batch: int, device: torch.device | str
) -> Iterator[Generated]:
    """Draw one image for each label (M,), `batch` at a time; image i starts from the noise of (seed, i)."""
    schedule = timesteps_for(config.name, config.num_function_evaluations)
    shape = (model.config.channels, *model.config.image_size)
    for first in range(0, len(labels), batch):
        y = labels[first : first + batch].to(device)
        x0 = seeding.noise_for_images(seed, first, len(y), shape, device)
        passes: list[int] = []

        def count(step: Step, passes: list[int] = passes) -> None:
            passes.append(step.forward_passes)

        images = SOLVERS[config.name](model, x0, schedule.timesteps, y=y, guidance=config.guidance, callback=count)
        yield Generated(images, schedule.num_function_evaluations, sum(passes))
