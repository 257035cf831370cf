"""The space of sampler settings, searched by Optuna for two objectives: distance and NFE."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from pforce.models import ModelConfig
from pforce.sampling import Guidance, SamplerConfig, check_sampler
from pforce.sampling.budget import SOLVERS, Solver, own_settings
from pforce.validation import require

ASKED_AGAIN = 10
"""Suggestions in a row that were measured already, after which a random one is tried."""
RANDOM_TRIES = 1000
"""Random samplers in a row that were measured already, after which the space counts as used up."""


@dataclass(frozen=True)
class SearchSpace:
    """Ranges (low, high), both included."""

    samplers: tuple[Solver, ...] = ("euler", "dual_loop", "look_ahead")
    """Solvers that are tried."""
    nfe: tuple[int, int] = (6, 24)
    """Function evaluations an image."""
    quantile: tuple[float, float] = (0.1, 0.9)
    """Share of confident patches, in steps of 0.05."""
    inner_steps: tuple[int, int] = (2, 6)
    """dual_loop, random_order: evaluations a step."""
    context_ratio: tuple[float, float] = (1.0, 2.5)
    """look_ahead: context time over time, in steps of 0.1."""
    start_after: tuple[float, float] = (0.0, 0.3)
    """look_ahead: until when a step makes one evaluation, in steps of 0.05."""

    def __post_init__(self) -> None:
        require(len(self.samplers) > 0, "samplers", self.samplers, "at least one")
        for name, least, most in (
            ("nfe", 1, math.inf),
            ("quantile", 0.01, 0.99), ("inner_steps", 1, math.inf), ("context_ratio", 1, math.inf),
            ("start_after", 0, 1),
        ):  # fmt: skip
            low, high = getattr(self, name)
            require(least <= low <= high <= most, name, (low, high), f"(low, high) with {least} ≤ low ≤ high ≤ {most}")
        if any("inner_steps" in own_settings(name) for name in self.samplers if name in SOLVERS):
            require(
                self.inner_steps[1] <= self.nfe[0],
                "inner_steps",
                self.inner_steps,
                f"at most {self.nfe[0]}, the smallest nfe: a step must fit into it",
            )

    def distributions(self, sampler: str) -> dict[str, BaseDistribution]:
        """Of the parameters that a solver has."""
        known: dict[str, BaseDistribution] = {
            "quantile": FloatDistribution(*self.quantile, step=0.05),
            "inner_steps": IntDistribution(*self.inner_steps),
            "context_ratio": FloatDistribution(*self.context_ratio, step=0.1),
            "start_after": FloatDistribution(*self.start_after, step=0.05),
        }
        own = {name: known[name] for name in own_settings(sampler) if name in known}
        return {
            "sampler": CategoricalDistribution(self.samplers), "nfe": IntDistribution(*self.nfe), **own,
        }  # fmt: skip


def to_config(parameters: Mapping[str, Any], guidance: Guidance) -> SamplerConfig:
    """Suggested parameters as a sampler; floats rounded, as steps of 0.05 leave 0.15000000000000002."""
    own: dict[str, Any] = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in parameters.items()
        if name not in ("sampler", "nfe")
    }
    return SamplerConfig(parameters["sampler"], parameters["nfe"], guidance, **own)


def to_parameters(config: SamplerConfig) -> dict[str, Any]:
    """The inverse, for measurements that were made before."""
    own = {name: value for name, value in config.settings.items() if name in
           ("quantile", "inner_steps", "context_ratio", "start_after")}  # fmt: skip
    return {"sampler": config.name, "nfe": config.schedule().num_function_evaluations, **own}


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> float | int:
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step)


class Search:
    """Suggests samplers that were not measured yet. Measurements of earlier calls are told first."""

    def __init__(self, space: SearchSpace, guidance: Guidance, *, seed: int) -> None:
        self.space, self.guidance = space, guidance
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # group and constant_liar are called experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=12, multivariate=True, group=True, constant_liar=True
            )
        self.study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        self.known: dict[str, tuple[float, float]] = {}
        self.under_way: dict[str, optuna.Trial | None] = {}
        self.failed: set[str] = set()
        self.random = random.Random(seed)
        self.first = [config for config in self.baselines() if config.name in space.samplers]

    def baselines(self) -> list[SamplerConfig]:
        """Euler at the largest, middle and smallest NFE, and every solver's defaults at the largest: asked first."""
        low, high = self.space.nfe
        euler = [SamplerConfig("euler", nfe, self.guidance) for nfe in dict.fromkeys((high, (low + high) // 2, low))]
        others = []
        for name in self.space.samplers:
            if name != "euler":
                own: dict[str, Any] = (
                    {"inner_steps": min(4, self.space.inner_steps[1])} if "inner_steps" in own_settings(name) else {}
                )
                others.append(SamplerConfig(name, high, self.guidance, **own))
        return euler + others

    @staticmethod
    def key(config: SamplerConfig) -> str:
        """Equal for samplers that draw the same images."""
        return repr(sorted(config.canonical().items(), key=lambda item: item[0]))

    def tell(self, config: SamplerConfig, distance: float, nfe: float) -> None:
        """A measurement, of this call or of an earlier one."""
        key = self.key(config)
        trial = self.under_way.pop(key, None)
        self.known[key] = (distance, nfe)
        if trial is not None:
            self.study.tell(trial, [distance, nfe])
            return
        try:
            told = create_trial(
                params=to_parameters(config),
                distributions=self.space.distributions(config.name),
                values=[distance, nfe],
                state=TrialState.COMPLETE,
            )
        except ValueError:
            return  # a baseline outside the ranges: known, but no part of the space that is modelled
        self.study.add_trial(told)

    def fail(self, config: SamplerConfig) -> None:
        """A sampler could not be measured."""
        trial = self.under_way.pop(self.key(config), None)
        self.failed.add(self.key(config))
        if trial is not None:
            self.study.tell(trial, state=TrialState.FAIL)

    def ask(self) -> SamplerConfig | None:
        """A sampler that was neither measured nor is being measured; None where the space seems used up."""
        while self.first:
            config = self.first.pop(0)
            if self.key(config) not in {**self.known, **self.under_way}:
                self.under_way[self.key(config)] = None
                return config
        for _ in range(ASKED_AGAIN):
            trial = self.study.ask()
            name = trial.suggest_categorical("sampler", self.space.samplers)
            parameters: dict[str, Any] = {"sampler": name}
            for parameter, distribution in self.space.distributions(name).items():
                if parameter != "sampler":
                    parameters[parameter] = _suggest(trial, parameter, distribution)
            config = to_config(parameters, self.guidance)
            key = self.key(config)
            if key in self.known:
                self.study.tell(trial, list(self.known[key]))
            elif key in self.under_way or key in self.failed:
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.under_way[key] = trial
                return config
        for _ in range(RANDOM_TRIES):
            config = self._random()
            key = self.key(config)
            if key not in {**self.known, **self.under_way} and key not in self.failed:
                self.under_way[key] = None
                return config
        return None

    def _random(self) -> SamplerConfig:
        """A point of the space's grid."""
        name = self.random.choice(self.space.samplers)
        parameters: dict[str, Any] = {"sampler": name}
        for parameter, distribution in self.space.distributions(name).items():
            if isinstance(distribution, IntDistribution):
                parameters[parameter] = self.random.randint(distribution.low, distribution.high)
            elif isinstance(distribution, FloatDistribution):
                step = distribution.step or 1.0
                places = round((distribution.high - distribution.low) / step)
                parameters[parameter] = distribution.low + step * self.random.randint(0, places)
        return to_config(parameters, self.guidance)


def check_space(space: SearchSpace, guidance: Guidance, model: ModelConfig) -> None:
    """FieldError where the model cannot be sampled with one of the space's solvers, or not guided."""
    for name in space.samplers:
        require(name in SOLVERS, "samplers", name, f"one of {', '.join(SOLVERS)}")
        one = 1 if "inner_steps" in own_settings(name) else None  # so that any NFE is enough for a step
        check_sampler(SamplerConfig(name, space.nfe[1], guidance, inner_steps=one), model)
