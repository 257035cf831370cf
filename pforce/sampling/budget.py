"""How many steps a solver may take for a given number of function evaluations (NFE), and a configured solver."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pforce import grid, seeding
from pforce.models.config import ModelConfig
from pforce.sampling.confidence import require_share, require_threshold
from pforce.sampling.guidance import Denoiser, Guidance
from pforce.sampling.schedule import SPACINGS, Spacing, spaced
from pforce.sampling.solvers import Callback, Step, dual_loop, euler, look_ahead, looks_ahead, random_order
from pforce.validation import require

Solver = Literal["euler", "dual_loop", "look_ahead", "random_order"]
SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "dual_loop": dual_loop,
    "look_ahead": look_ahead,
    "random_order": random_order,
}
COMMON = ("model", "x0", "timesteps", "y", "guidance", "generator", "callback")
"""Arguments that every solver has; the others are its own settings."""


def own_settings(sampler: str) -> dict[str, Any]:
    """A solver's own settings with their defaults, read from its signature."""
    return dict(_own_settings(sampler))


@cache
def _own_settings(sampler: str) -> dict[str, Any]:
    parameters = inspect.signature(SOLVERS[sampler]).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in COMMON}


def _resolved(sampler: str, own: dict[str, Any]) -> dict[str, Any]:
    """All settings of a solver, given ones over defaults. FieldError for one that it does not have."""
    known = own_settings(sampler)
    for name, value in own.items():
        others = [other for other in SOLVERS if name in own_settings(other)]
        has = f"a setting of {', '.join(others)}; " if others else "no setting of any solver; "
        require(name in known, name, value, f"left out: it is {has}{sampler} has {', '.join(known) or 'none'}")
    return {**known, **own}


class Schedule(NamedTuple):
    """Timesteps for a solver and what they cost."""

    timesteps: Tensor
    """(S + 1,) from 0 to 1, float64."""
    num_function_evaluations: int
    """The NFE that a sample costs; at most what was asked for."""


def _cost(sampler: str, times: Tensor, settings: dict[str, Any]) -> int:
    """Function evaluations of a solver on a timestep grid."""
    steps = len(times) - 1
    if sampler == "look_ahead":
        return steps + sum(looks_ahead(start, settings["start_after"]) for start in times[:-1].tolist())
    return steps * settings.get("inner_steps", 1)


def timesteps_for(
    sampler: str | Callable[..., Tensor],
    num_function_evaluations: int,
    *,
    spacing: Spacing = "linear",
    shift: float = 3.0,
    **own: Any,
) -> Schedule:
    """The grid on which `sampler` (a solver or its name) spends the given NFE.

    Where no number of steps spends it exactly, the nearest lower NFE is taken, with a warning.

    Args:
        spacing, shift: of the timesteps, as in `pforce.sampling.spaced`.
        own: the solver's settings; only those that change its cost matter (inner_steps, start_after).

    FieldError for an unknown solver or setting, or an NFE that is not enough for one step.
    """
    name = sampler if isinstance(sampler, str) else sampler.__name__
    require(name in SOLVERS, "sampler", name, f"one of {', '.join(SOLVERS)}")
    require(num_function_evaluations >= 1, "num_function_evaluations", num_function_evaluations, "≥ 1")
    settings = _resolved(name, own)
    require(settings.get("inner_steps", 1) >= 1, "inner_steps", settings.get("inner_steps"), "≥ 1")
    # A step costs at least one evaluation, and more steps never cost less: search downwards.
    for steps in range(num_function_evaluations, 0, -1):
        times = spaced(steps, spacing, shift=shift)
        cost = _cost(name, times, settings)
        if cost <= num_function_evaluations:
            if cost < num_function_evaluations:
                warnings.warn(
                    f"{name} cannot spend {num_function_evaluations} NFE exactly: it takes {cost} in {steps} steps",
                    stacklevel=2,
                )
            return Schedule(times, cost)
    least = _cost(name, spaced(1, spacing, shift=shift), settings)
    told = ", ".join(f"{key} = {settings[key]}" for key in ("inner_steps", "start_after") if key in settings)
    require(False, "num_function_evaluations", num_function_evaluations, f"≥ {least} for {name} with {told}")
    raise AssertionError


@dataclass(frozen=True)
class SamplerConfig:
    """The sampler of an experiment's evaluation. None stands for the solver's own default."""

    name: Solver = "euler"
    """Solver of the flow's ODE."""
    num_function_evaluations: int = 24
    """NFE: guided evaluations of the model an image."""
    guidance: Guidance = field(default_factory=Guidance)
    """Classifier-free guidance."""
    quantile: float | None = None
    """Adaptive solvers: patches below this quantile of their image's uncertainty are confident. Default 0.4."""
    threshold: float | None = None
    """dual_loop, look_ahead: patches below this predicted variance are confident, instead of the quantile."""
    pooling: grid.Pooling | None = None
    """dual_loop, look_ahead: how a patch's uncertainty is pooled from its pixels. Default mean."""
    inner_steps: int | None = None
    """dual_loop, random_order: evaluations a step. Default 4."""
    context_ratio: float | None = None
    """look_ahead: at t the confident patches are shown at ratio·t. Default 1.4."""
    start_after: float | None = None
    """look_ahead: up to this time a step makes one evaluation. Default 0.05."""
    spacing: Spacing = "linear"
    """Spacing of the timesteps."""
    shift: float | None = None
    """Shift of the shifted spacing. Default 3."""

    def __post_init__(self) -> None:
        require(self.name in SOLVERS, "name", self.name, f"one of {', '.join(SOLVERS)}")
        require(self.num_function_evaluations >= 1, "num_function_evaluations", self.num_function_evaluations, "≥ 1")
        require(self.spacing in SPACINGS, "spacing", self.spacing, f"one of {', '.join(SPACINGS)}")
        shifted = self.spacing == "shifted"
        require(self.shift is None or shifted, "shift", self.shift, "left out, or spacing = shifted")
        settings = self.settings
        require_share(settings.get("quantile", 0.5))
        require_threshold(settings.get("threshold"))
        require(self.pooling in (None, *grid.POOLINGS), "pooling", self.pooling, f"one of {', '.join(grid.POOLINGS)}")
        require(
            settings.get("threshold") is None or self.quantile is None,
            "quantile",
            self.quantile,
            "left out where a threshold is given",
        )
        require(settings.get("context_ratio", 1) >= 1, "context_ratio", self.context_ratio, "≥ 1")
        require(0 <= settings.get("start_after", 0) <= 1, "start_after", self.start_after, "in [0, 1]")
        self.schedule()  # an NFE that is too small for one step is refused here

    @property
    def settings(self) -> dict[str, Any]:
        """The solver's own settings, defaults filled in. FieldError for one that it does not have."""
        common = ("name", "num_function_evaluations", "guidance", "spacing", "shift")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in common}
        return _resolved(self.name, {name: value for name, value in own.items() if value is not None})

    def schedule(self) -> Schedule:
        """Its timesteps and NFE; without a warning where the budget is not met exactly (`unspent` tells)."""
        shift = {} if self.shift is None else {"shift": self.shift}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timesteps_for(
                self.name, self.num_function_evaluations, spacing=self.spacing, **shift, **self.settings
            )

    @property
    def unspent(self) -> str | None:
        """A sentence where the NFE asked for cannot be spent exactly, for whoever shows it; None where it can."""
        spent = self.schedule().num_function_evaluations
        if spent == self.num_function_evaluations:
            return None
        return f"{self.name} cannot spend {self.num_function_evaluations} NFE exactly: it takes {spent}"

    def canonical(self) -> dict[str, Any]:
        """What determines the images, as plain data: defaults filled in, what does not apply left out."""
        data: dict[str, Any] = {
            "name": self.name,
            "num_function_evaluations": self.schedule().num_function_evaluations,
            "guidance": {
                "scale": self.guidance.scale,
                "interval": None if self.guidance.interval is None else list(self.guidance.interval),
            },
        }
        own = self.settings
        if own.get("threshold") is not None:
            del own["quantile"]
        data |= {name: value for name, value in own.items() if value is not None}
        if self.spacing != "linear":
            data["spacing"] = self.spacing
        if self.shift is not None:
            data["shift"] = self.shift
        return data

    def sample(
        self,
        model: Denoiser,
        x0: Tensor,
        y: Tensor,
        *,
        seed: int,
        first: int,
        callback: Callback | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) from noise x0; what the solver draws belongs to (seed, first + i)."""
        generators = [seeding.generator("sampler", seed, first + i) for i in range(len(x0))]
        return SOLVERS[self.name](
            model,
            x0,
            self.schedule().timesteps,
            y=y,
            guidance=self.guidance,
            generator=generators,
            callback=callback,
            **self.settings,
        )


def check_sampler(sampler: SamplerConfig, model: ModelConfig, prefix: str = "") -> None:
    """FieldError where this model cannot be sampled so. `prefix` goes before the fields' names."""
    require(
        model.difficulty_head or sampler.name == "euler",
        f"{prefix}name",
        sampler.name,
        "euler, as the model has no difficulty head (SiT) and predicts no uncertainty",
    )
    require(
        sampler.guidance.scale == 1 or model.class_dropout > 0,
        f"{prefix}guidance.scale",
        sampler.guidance.scale,
        "1, as the model was trained without label dropout (class_dropout = 0) and never learned the null class",
    )


class Generated(NamedTuple):
    """A batch of generated images and what it cost."""

    images: Tensor
    """(B, C, H, W)."""
    num_function_evaluations: int
    """NFE spent an image."""
    forward_passes: int
    """Forward passes of the model an image (guidance makes two of one evaluation)."""


def generate(
    model: Denoiser,
    config: SamplerConfig,
    labels: Tensor,
    *,
    seed: int,
    batch: int,
    device: torch.device | str,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Generated]:
    """Draw one image for each label (M,), `batch` at a time; image i starts from the noise of (seed, i).

    The last batch is drawn whole and cut: its size must not change the rounding of its images.

    Args:
        share: (r, n) draws the batches r, r + n, r + 2n, … only.
    """
    shape = (model.config.channels, *model.config.image_size)
    count_all, batch = len(labels), min(batch, len(labels))
    labels = torch.cat([labels, labels[-1:].expand(-count_all % batch)])
    for first in range(share[0] * batch, count_all, share[1] * batch):
        y = labels[first : first + batch].to(device)
        x0 = seeding.noise_for_images(seed, first, len(y), shape, device)
        passes: list[int] = []

        def count(step: Step, passes: list[int] = passes) -> None:
            passes.append(step.forward_passes)

        images = config.sample(model, x0, y, seed=seed, first=first, callback=count)
        yield Generated(images[: count_all - first], len(passes), sum(passes))
