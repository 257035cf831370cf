"""The options that choose a sampler, shared by the commands that sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pforce.grid import Pooling
from pforce.sampling import Guidance, SamplerConfig
from pforce.sampling.budget import Solver
from pforce.sampling.schedule import Spacing
from pforce.trial.source import Source
from pforce.validation import require


@dataclass(frozen=True, kw_only=True)
class SamplerArguments:
    """A solver and its settings; what is left out is as the model's experiment has it."""

    sampler: Solver | None = None
    """Solver. Default: what the model's experiment is evaluated with, or euler."""
    nfe: int | None = None
    """Function evaluations an image. Default: the experiment's, or 24."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 is none. Default: the experiment's, or 1."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only steps that start between these times."""
    quantile: float | None = None
    """Adaptive solvers: patches below this quantile of their image's uncertainty are confident. Default 0.4."""
    threshold: float | None = None
    """dual_loop, look_ahead: patches below this predicted variance are confident, instead of the quantile."""
    pooling: Pooling | None = None
    """dual_loop, look_ahead: how uncertainty is pooled over a patch. Default mean."""
    inner_steps: int | None = None
    """dual_loop, random_order: evaluations a step. Default 4."""
    context_ratio: float | None = None
    """look_ahead: at t the confident patches are shown at ratio·t. Default 1.4."""
    start_after: float | None = None
    """look_ahead: up to this time a step makes one evaluation. Default 0.05."""
    spacing: Spacing | None = None
    """Spacing of the timesteps. Default linear."""
    shift: float | None = None
    """Shift of the shifted spacing. Default 3."""


def sampler_config(a: SamplerArguments, source: Source) -> SamplerConfig:
    """The sampler asked for; what is not given is as the model's experiment has it, if the solver is the same."""
    base = source.experiment.sampler if source.experiment else SamplerConfig()
    fields: dict[str, Any] = {name: getattr(base, name) for name in base.__dataclass_fields__}
    if a.sampler is not None and a.sampler != base.name:
        fields = {"name": a.sampler, "num_function_evaluations": base.num_function_evaluations}
    given = {
        "quantile": a.quantile, "threshold": a.threshold, "pooling": a.pooling, "inner_steps": a.inner_steps,
        "context_ratio": a.context_ratio, "start_after": a.start_after,
        "spacing": a.spacing, "shift": a.shift, "num_function_evaluations": a.nfe,
    }  # fmt: skip
    scale = base.guidance.scale if a.guidance is None else a.guidance
    require(
        a.guidance_interval is None or scale != 1,
        "guidance_interval",
        a.guidance_interval,
        "left out without --guidance, or with a scale of 1",
    )
    interval = base.guidance.interval if a.guidance_interval is None else a.guidance_interval
    if a.threshold is not None:
        fields |= {"quantile": None}  # the experiment's would contradict it
    fields |= {name: value for name, value in given.items() if value is not None}
    return SamplerConfig(**{**fields, "guidance": Guidance(scale, interval)})
