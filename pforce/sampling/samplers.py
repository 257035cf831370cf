"""Samplers as values: a solver with its settings, its cost, and the ranges that a search over its settings tries.

A sampler is frozen data that draws: `sampler.sample(model, x0, y, seed=…, first=…)` gives images. The solvers
themselves are the plain functions of `pforce.sampling.solvers`.

To add one: write a frozen dataclass here, or in a module of `pforce_experiments/`, and decorate it with `@register`.
Configurations, names of results, command lines and searches take everything from the class.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pforce import grid, seeding
from pforce.base.errors import not_a_setting, require, require_applies, require_one_of
from pforce.sampling.budget import Schedule, affordable
from pforce.sampling.confidence import Generators, require_share, require_threshold
from pforce.sampling.guidance import Denoiser, Guidance
from pforce.sampling.schedule import SPACINGS, Spacing, spaced
from pforce.sampling.solvers import Callback, dual_loop, euler, look_ahead, looks_ahead, random_order

SHIFT = 3.0
"""Default shift of the shifted spacing."""


@dataclass(frozen=True)
class Range:
    """Values that a search tries: low, low + step, … up to high. They are integers where all three are."""

    low: float
    high: float
    step: float = 1

    @property
    def integer(self) -> bool:
        """Whether the values are integers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step))


@dataclass(frozen=True)
class Sampler(ABC):
    """A solver of the flow's ODE with its settings. Fields of subclasses are the solver's own settings."""

    name: ClassVar[str]
    """Name of the solver in configurations, tables and records."""
    needs_difficulty_head: ClassVar[bool] = True
    """Whether it needs the predicted uncertainty or one timestep per patch, which a SiT does not have."""
    searched: ClassVar[Mapping[str, Range]] = MappingProxyType({})
    """Own setting → values that a search tries; settings that are not named keep their defaults."""
    cost_settings: ClassVar[tuple[str, ...]] = ()
    """Own settings that the cost depends on, named in the error about too small an NFE."""

    num_function_evaluations: int = 24
    """NFE: guided evaluations of the model per image."""
    guidance: Guidance = field(default_factory=Guidance)
    """Classifier-free guidance."""
    spacing: Spacing = "linear"
    """Spacing of the timesteps."""
    shift: float = SHIFT
    """Shift of the shifted spacing; the other spacings have none."""

    def __post_init__(self) -> None:
        require(self.num_function_evaluations >= 1, "num_function_evaluations", self.num_function_evaluations, "≥ 1")
        require_one_of("spacing", self.spacing, SPACINGS)
        require(0 < self.shift < math.inf, "shift", self.shift, "> 0")
        usual = self.shift == SHIFT or self.spacing == "shifted"
        require_applies(usual, "shift", self.shift, f"to the spacing {self.spacing}, only to shifted")
        self.check()
        self.schedule()  # refuses an NFE that is too small for one step

    def check(self) -> None:  # noqa: B027 - a sampler without settings of its own has none to check
        """Raise FieldError where an own setting is not allowed."""

    @abstractmethod
    def cost(self, timesteps: Tensor) -> int:
        """Function evaluations on timesteps (S + 1,): at least one per step."""

    @abstractmethod
    def solve(
        self,
        model: Denoiser,
        x0: Tensor,
        timesteps: Tensor,
        *,
        y: Tensor,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw images (B, C, H, W) from noise x0 (B, C, H, W), on any timesteps (S + 1,).

        Args:
            y: classes (B,).
            generator: generator of the solver's own random draws; a sequence has one per image.
            callback: called after each evaluation; it counts costs.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """The own settings that apply: settings that are None are left out."""
        own = {name: getattr(self, name) for name in own_settings(type(self))}
        return {name: value for name, value in own.items() if value is not None}

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that the given ones replace, with the values that they have then."""
        del given
        return {}

    def schedule(self) -> Schedule:
        """The timesteps and NFE. Does not warn where the NFE cannot be spent exactly; `unspent` says so."""
        nfe = self.num_function_evaluations
        found = affordable(self.cost, nfe, self.spacing, self.shift)
        if found is None:
            least = self.cost(spaced(1, self.spacing, shift=self.shift))
            told = ", ".join(f"{name} = {getattr(self, name)}" for name in self.cost_settings)
            allowed = f"≥ {least} for {self.name}" + (f" with {told}" if told else "")
            require(False, "num_function_evaluations", nfe, allowed)
            raise AssertionError
        return found

    @property
    def unspent(self) -> str | None:
        """A sentence for users where the NFE cannot be spent exactly; None where it can."""
        spent = self.schedule().num_function_evaluations
        if spent == self.num_function_evaluations:
            return None
        return f"{self.name} cannot spend {self.num_function_evaluations} NFE exactly: it takes {spent}"

    def canonical(self) -> dict[str, Any]:
        """Everything that determines the images, as plain data, without settings that do not apply and without default
        spacing and shift.

        Equal for samplers that draw the same images. Identities of results are made in `pforce.records.identity`.
        """
        data: dict[str, Any] = {
            "name": self.name,
            "num_function_evaluations": self.schedule().num_function_evaluations,
            "guidance": {
                "scale": self.guidance.scale,
                "interval": None if self.guidance.interval is None else list(self.guidance.interval),
            },
            **self.settings,
        }
        if self.spacing != "linear":
            data["spacing"] = self.spacing
        if self.shift != SHIFT:
            data["shift"] = self.shift
        return data

    @torch.no_grad()
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
        """Draw images (B, C, H, W) from noise x0; the solver's own random draws for image i belong to (seed, first +
        i)."""
        generators = [seeding.generator("sampler", seed, first + i) for i in range(len(x0))]
        return self.solve(model, x0, self.schedule().timesteps, y=y, generator=generators, callback=callback)


COMMON = tuple(each.name for each in dataclasses.fields(Sampler))
"""Fields that every sampler has: they are kept where another solver is chosen."""
RESERVED = ("name", "sampler", "nfe", "passes", "again", "n", "front")
"""Names that a setting may not have, because records, searches and their tables use them for other things."""
SAMPLERS: dict[str, type[Sampler]] = {}
"""All samplers by the name that configurations use."""

S = TypeVar("S", bound=type[Sampler])


def register(cls: S) -> S:
    """Register a sampler under its name: a decorator of its class. TypeError where the name or a setting is not
    possible."""
    there = SAMPLERS.get(cls.name)
    if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"{cls.__qualname__}: the name {cls.name!r} is that of {there.__module__}.{there.__qualname__}")
    taken = [name for name in own_settings(cls) if name in RESERVED]
    if taken:
        raise TypeError(f"{cls.__qualname__}.{taken[0]}: no setting is called one of {', '.join(RESERVED)}")
    unknown = [name for name in cls.searched if name not in own_settings(cls)]
    if unknown:
        raise TypeError(f"{cls.__qualname__}.searched: {unknown[0]} is none of its settings")
    SAMPLERS[cls.name] = cls
    return cls


def own_settings(cls: type[Sampler]) -> tuple[str, ...]:
    """Names of the settings that a sampler has beyond those of all samplers."""
    return tuple(each.name for each in dataclasses.fields(cls) if each.name not in COMMON)


@register
@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method with one timestep for all patches; one evaluation per step."""

    name: ClassVar[str] = "euler"
    needs_difficulty_head: ClassVar[bool] = False

    def cost(self, timesteps: Tensor) -> int:
        return len(timesteps) - 1

    def solve(self, model, x0, timesteps, *, y, generator=None, callback=None):
        return euler(model, x0, timesteps, y=y, guidance=self.guidance, generator=generator, callback=callback)


QUANTILES = Range(0.1, 0.9, 0.05)
INNER_STEPS = Range(2, 6)


@dataclass(frozen=True)
class UncertaintySampler(Sampler):
    """A sampler whose confident patches are those with low predicted uncertainty."""

    quantile: float = 0.4
    """Patches whose predicted uncertainty is below this quantile of their image's are confident."""
    threshold: float | None = None
    """Patches whose predicted variance is below this threshold are confident; it replaces the quantile."""
    pooling: grid.Pooling = "mean"
    """Pooling of the pixels' predicted variance over a patch."""

    def check(self) -> None:
        require_share(self.quantile)
        require_threshold(self.threshold)
        require_one_of("pooling", self.pooling, grid.POOLINGS)
        default = type(self).quantile
        alone = self.threshold is None or self.quantile == default
        require_applies(alone, "quantile", self.quantile, "beside a threshold, which replaces it")

    @property
    def settings(self) -> dict[str, Any]:
        """The own settings that apply: a threshold replaces the quantile."""
        own = super().settings
        if self.threshold is not None:
            del own["quantile"]
        return own

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("threshold") is not None:
            return {"quantile": cls.quantile}
        return {"threshold": None} if given.get("quantile") is not None else {}


@register
@dataclass(frozen=True)
class DualLoop(UncertaintySampler):
    """Confident patches take each step at once, uncertain ones in `inner_steps` parts with that context."""

    name: ClassVar[str] = "dual_loop"
    searched: ClassVar[Mapping[str, Range]] = {"quantile": QUANTILES, "inner_steps": INNER_STEPS}
    cost_settings: ClassVar[tuple[str, ...]] = ("inner_steps",)
    inner_steps: int = 4
    """Function evaluations per step, ≥ 1."""

    def check(self) -> None:
        super().check()
        require(self.inner_steps >= 1, "inner_steps", self.inner_steps, "≥ 1")

    def cost(self, timesteps: Tensor) -> int:
        return self.inner_steps * (len(timesteps) - 1)

    def solve(self, model, x0, timesteps, *, y, generator=None, callback=None):
        return dual_loop(
            model, x0, timesteps, y=y, guidance=self.guidance, generator=generator, callback=callback,
            quantile=self.quantile, inner_steps=self.inner_steps, pooling=self.pooling, threshold=self.threshold,
        )  # fmt: skip


@register
@dataclass(frozen=True)
class LookAhead(UncertaintySampler):
    """Uncertain patches move with the velocity predicted when the confident ones are shown further denoised.

    Up to the time `start_after` a step takes one evaluation, later two.
    """

    name: ClassVar[str] = "look_ahead"
    searched: ClassVar[Mapping[str, Range]] = {
        "quantile": QUANTILES, "context_ratio": Range(1.0, 2.5, 0.1), "start_after": Range(0.0, 0.3, 0.05),
    }  # fmt: skip
    cost_settings: ClassVar[tuple[str, ...]] = ("start_after",)
    context_ratio: float = 1.4
    """Context time divided by t: at t the confident patches are shown at min(1, ratio·t)."""
    start_after: float = 0.05
    """Time up to which a step takes one evaluation, without context."""

    def check(self) -> None:
        super().check()
        require(1 <= self.context_ratio < math.inf, "context_ratio", self.context_ratio, "≥ 1")
        require(0 <= self.start_after <= 1, "start_after", self.start_after, "in [0, 1]")

    def cost(self, timesteps: Tensor) -> int:
        starts = timesteps[:-1].tolist()
        return len(starts) + sum(looks_ahead(start, self.start_after) for start in starts)

    def solve(self, model, x0, timesteps, *, y, generator=None, callback=None):
        return look_ahead(
            model, x0, timesteps, y=y, guidance=self.guidance, generator=generator, callback=callback,
            quantile=self.quantile, context_ratio=self.context_ratio, start_after=self.start_after,
            pooling=self.pooling, threshold=self.threshold,
        )  # fmt: skip


@register
@dataclass(frozen=True)
class RandomOrder(Sampler):
    """The control of `DualLoop`: as many random patches in place of the confident ones."""

    name: ClassVar[str] = "random_order"
    searched: ClassVar[Mapping[str, Range]] = {"quantile": QUANTILES, "inner_steps": INNER_STEPS}
    cost_settings: ClassVar[tuple[str, ...]] = ("inner_steps",)
    quantile: float = 0.4
    """Share of an image's patches that run ahead."""
    inner_steps: int = 4
    """Function evaluations per step, ≥ 1."""

    def check(self) -> None:
        require_share(self.quantile)
        require(self.inner_steps >= 1, "inner_steps", self.inner_steps, "≥ 1")

    def cost(self, timesteps: Tensor) -> int:
        return self.inner_steps * (len(timesteps) - 1)

    def solve(self, model, x0, timesteps, *, y, generator=None, callback=None):
        return random_order(
            model, x0, timesteps, y=y, guidance=self.guidance, generator=generator, callback=callback,
            quantile=self.quantile, inner_steps=self.inner_steps,
        )  # fmt: skip


def require_settings(cls: type[Sampler], given: Mapping[str, Any]) -> None:
    """Raise FieldError for a setting that this sampler does not have; it says which samplers have it."""
    own = {name: own_settings(each) for name, each in SAMPLERS.items()}
    for name, value in given.items():
        if name not in own_settings(cls):
            raise not_a_setting(name, value, cls.name, own)
