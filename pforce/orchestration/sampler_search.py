"""The space of sampler settings, searched with Optuna for two objectives, distance and NFE.

Each sampler declares the values of its settings that are tried (`pforce.sampling.Sampler.searched`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from pforce.base.errors import FieldError, require, require_applies, require_one_of
from pforce.models import ModelConfig
from pforce.orchestration.study import RANDOM_ATTEMPTS, Study
from pforce.sampling import SAMPLERS, Euler, Guidance, Range, Sampler, check_sampler


@dataclass(frozen=True)
class SearchSpace:
    """The samplers that are tried, and the ranges of their settings."""

    samplers: tuple[str, ...] = ("euler", "dual_loop", "look_ahead")
    """Names of the samplers that are tried."""
    nfe: tuple[int, int] = (6, 24)
    """Smallest and largest number of function evaluations per image."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Setting → smallest and largest value, instead of those that the samplers declare."""

    def __post_init__(self) -> None:
        require(len(self.samplers) > 0, "samplers", self.samplers, "at least one")
        for name in self.samplers:
            require_one_of("samplers", name, SAMPLERS)
        low, high = self.nfe
        require(1 <= low <= high, "nfe", self.nfe, "(low, high) with 1 ≤ low ≤ high")
        for setting, ends in self.ranges.items():
            tried = f"to {', '.join(self.samplers)}, of which {', '.join(self.settings) or 'the NFE'} is searched"
            require_applies(setting in self.settings, setting, ends, tried)
            require(ends[0] <= ends[1], setting, ends, "(low, high) with low ≤ high")
            declared = [SAMPLERS[name].searched.get(setting) for name in self.samplers]
            integers = any(each is not None and each.integer for each in declared)
            require(not integers or all(isinstance(end, int) for end in ends), setting, ends, "two integers")
        for name in self.samplers:
            self._check_ends(name)

    def _check_ends(self, sampler: str) -> None:
        """Raise FieldError where the ends of the ranges, in any combination, are not possible settings of a sampler."""
        ranges = self.ranges_of(sampler)
        for ends in itertools.product(*((each.low, each.high) for each in ranges.values())):
            settings: dict[str, Any] = dict(zip(ranges, ends, strict=True))
            try:
                SAMPLERS[sampler](self.nfe[0], **settings)
            except FieldError as error:
                if error.field == "num_function_evaluations":
                    raise FieldError("nfe", self.nfe, f"enough for all that is searched ({error})") from error
                raise

    def ranges_of(self, sampler: str) -> dict[str, Range]:
        """Ranges of a sampler's settings that are tried."""
        found: dict[str, Range] = {}
        for setting, declared in SAMPLERS[sampler].searched.items():
            low, high = self.ranges.get(setting, (declared.low, declared.high))
            whole = declared.integer
            found[setting] = Range(low, high, declared.step) if whole else Range(float(low), float(high), declared.step)
        return found

    def parameters(self, sampler: str) -> dict[str, str]:
        """Setting → name of the search's parameter, which samplers share that try the same values."""
        tried = [self.ranges_of(name) for name in self.samplers]
        found = {}
        for setting, values in self.ranges_of(sampler).items():
            shared = all(ranges[setting] == values for ranges in tried if setting in ranges)
            found[setting] = setting if shared else f"{sampler}.{setting}"
        return found

    @property
    def settings(self) -> list[str]:
        """Names of all settings that are searched, each once."""
        return list(dict.fromkeys(setting for name in self.samplers for setting in SAMPLERS[name].searched))

    @property
    def identity(self) -> dict[str, Any]:
        """The space as plain data."""
        found: dict[str, Any] = {"samplers": list(self.samplers), "nfe": list(self.nfe)}
        for name in self.samplers:
            ranges = self.ranges_of(name)
            for setting, key in self.parameters(name).items():
                found[key] = [ranges[setting].low, ranges[setting].high]
        return found

    def distributions_of(self, sampler: str) -> dict[str, BaseDistribution]:
        """Distributions of a sampler's parameters."""
        found: dict[str, BaseDistribution] = {
            "sampler": CategoricalDistribution(self.samplers), "nfe": IntDistribution(*self.nfe),
        }  # fmt: skip
        ranges = self.ranges_of(sampler)
        for setting, key in self.parameters(sampler).items():
            found[key] = _distribution(ranges[setting])
        return found

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Distributions of all samplers' parameters."""
        return {key: each for name in self.samplers for key, each in self.distributions_of(name).items()}

    @property
    def plain(self) -> dict[str, Any]:
        """The space as plain data."""
        return self.identity

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Parameters of a sampler, as a study suggests them."""
        name = trial.suggest_categorical("sampler", self.samplers)
        found: dict[str, Any] = {"sampler": name}
        for parameter, distribution in self.distributions_of(str(name)).items():
            if parameter != "sampler":
                found[parameter] = _suggest(trial, parameter, distribution)
        return found

    def rounded(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters with rounded floats, because steps of 0.05 give 0.15000000000000002."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in parameters.items()}

    def to_sampler(self, parameters: Mapping[str, Any], guidance: Guidance) -> Sampler:
        """Suggested parameters as a sampler."""
        rounded = self.rounded(parameters)
        own = {setting: rounded[key] for setting, key in self.parameters(parameters["sampler"]).items()}
        return SAMPLERS[parameters["sampler"]](parameters["nfe"], guidance, **own)

    def to_parameters(self, sampler: Sampler) -> dict[str, Any]:
        """The inverse of `to_sampler`, for earlier measurements."""
        own = {
            key: sampler.settings[setting]
            for setting, key in self.parameters(sampler.name).items()
            if setting in sampler.settings
        }
        return {"sampler": sampler.name, "nfe": sampler.num_function_evaluations, **own}

    def default(self, sampler: str, guidance: Guidance) -> Sampler:
        """A sampler with its defaults, moved into the ranges, at the largest NFE."""
        own: dict[str, Any] = {}
        for setting, values in self.ranges_of(sampler).items():
            usual: Any = SAMPLERS[sampler].__dataclass_fields__[setting].default
            own[setting] = min(max(usual, values.low), values.high) if isinstance(usual, (int, float)) else values.low
        return SAMPLERS[sampler](self.nfe[1], guidance, **own)


def _distribution(values: Range) -> BaseDistribution:
    if values.integer:
        return IntDistribution(int(values.low), int(values.high), step=int(values.step))
    return FloatDistribution(values.low, values.high, step=values.step)


def _suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> float | int:
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step)


class Search:
    """Suggests samplers that were not measured yet, through a study. `tell` it measurements of earlier calls first.

    A sampler that was under way when its process was killed is a running trial of the study, and comes first.
    """

    def __init__(self, space: SearchSpace, guidance: Guidance, study: Study) -> None:
        self.space, self.guidance, self.study = space, guidance, study
        self.known: dict[str, tuple[float, float]] = {}
        self.under_way: dict[str, int | None] = {}
        """Key of a sampler → number of its trial; None for one that has none."""
        self.failed: set[str] = set()
        self.left_over = [trial for trial in study.usable if not trial.state.is_finished()]
        self.first = [config for config in self.baselines() if config.name in space.samplers]

    def baselines(self) -> list[Sampler]:
        """The first samplers to measure: Euler at the largest, middle and smallest NFE, and all other samplers'
        defaults at the largest."""
        low, high = self.space.nfe
        euler = [Euler(nfe, self.guidance) for nfe in dict.fromkeys((high, (low + high) // 2, low))]
        others = [name for name in self.space.samplers if name != Euler.name]
        return [*euler, *(self.space.default(name, self.guidance) for name in others)]

    @staticmethod
    def key(config: Sampler) -> str:
        """A key that is equal for samplers that draw the same images."""
        return repr(sorted(config.canonical().items(), key=lambda item: item[0]))

    def tell(self, config: Sampler, distance: float, nfe: float) -> None:
        """Add a measurement of this call or of an earlier one."""
        key = self.key(config)
        number = self.under_way.pop(key, None)
        self.known[key] = (distance, nfe)
        if number is not None:
            self.study.tell(number, [distance, nfe])
            return
        params = self.space.rounded(self.space.to_parameters(config))
        if self.study.possible(params):  # else outside the ranges: known, but not part of the modelled space
            self.study.add(params, [distance, nfe], (), "records")

    def recall(self, config: Sampler, distance: float, nfe: float) -> None:
        """Add a measurement of an earlier call, which the study may know."""
        key = self.key(config)
        same = next((trial for trial in self.study.usable if self.key(self._sampler(trial)) == key), None)
        if same is None:
            self.tell(config, distance, nfe)
            return
        self.known[key] = (distance, nfe)
        self.study.tell(same.number, [distance, nfe])
        self.left_over = [trial for trial in self.left_over if trial.number != same.number]

    def fail(self, config: Sampler) -> None:
        """Note that a sampler could not be measured; its trial stays, and the next call retries it."""
        self.under_way.pop(self.key(config), None)
        self.failed.add(self.key(config))

    @property
    def elsewhere(self) -> int:
        """Number of samplers that other processes have begun."""
        ours = {*self.under_way.values(), *(trial.number for trial in self.left_over)}
        running = [trial for trial in self.study.usable if not trial.state.is_finished() and trial.number not in ours]
        return sum(self.key(self._sampler(trial)) not in self.failed for trial in running)

    def others(self) -> list[Sampler]:
        """Samplers that the study has as measured and this search does not know, as other processes measured them."""
        finished = [trial for trial in self.study.usable if trial.state == TrialState.COMPLETE]
        found = (self._sampler(trial) for trial in finished)
        return [config for config in found if self.key(config) not in self.known]

    def ask(self) -> Sampler | None:
        """A sampler that has not been measured and is not being measured; None where the space seems exhausted."""
        with self.study.alone():
            return self._ask()

    def _ask(self) -> Sampler | None:
        while self.left_over:
            trial = self.left_over.pop(0)
            if (config := self._begin(trial)) is not None:
                return config
        while self.first:
            config = self.first.pop(0)
            if self.key(config) not in {*self.known, *self.under_way, *self.failed, *self._begun()}:
                self.under_way[self.key(config)] = self.study.begin(self.space.to_parameters(config)).number
                return config
        for _ in range(RANDOM_ATTEMPTS):
            asked = self.study.ask()
            if asked is None:
                return None
            if (config := self._begin(asked)) is not None:
                return config
        return None

    def _begun(self) -> set[str]:
        """Keys of the samplers that are trials of the study."""
        return {self.key(self._sampler(trial)) for trial in self.study.usable}

    def _sampler(self, trial: FrozenTrial) -> Sampler:
        return self.space.to_sampler(trial.params, self.guidance)

    def _begin(self, trial: FrozenTrial) -> Sampler | None:
        """The sampler of a trial; None, with the trial told, where another trial has measured it or is measuring it."""
        config = self._sampler(trial)
        key = self.key(config)
        if key in self.known:
            self.study.tell(trial.number, list(self.known[key]))
        elif key in self.under_way:
            self.study.tell(trial.number, None)
        elif key not in self.failed:
            self.under_way[key] = trial.number
            return config
        return None


def check_space(space: SearchSpace, guidance: Guidance, model: ModelConfig) -> None:
    """Raise FieldError where the model cannot be sampled with one of the space's samplers or with this guidance."""
    for name in space.samplers:
        check_sampler(space.default(name, guidance), model)


@dataclass(frozen=True)
class Measurement:
    """A measurement of a sampler with a noise seed."""

    sampler: Sampler
    seed: int


def label(task: Measurement) -> str:
    """Label of a measurement: `dual_loop 24 NFE quantile=0.4 inner_steps=4`."""
    record = task.sampler.canonical()
    own = [f"{name}={record[name]:g}" for name in task.sampler.searched if name in record]
    return " ".join([task.sampler.name, f"{record['num_function_evaluations']} NFE", *own])


@dataclass
class Outcome:
    """The result of a call."""

    code: int
    frame: pd.DataFrame
    """One row per sampler: its settings, NFE, passes, GFLOPs/image, s/image, distance, n, front, and `again`."""
    seconds: float
    """Wall-clock time of this call's measurements."""
    busy_seconds: float
    """Seconds of workers in these measurements."""
    measured: int
    """Number of measurements in this call."""
    workers: int
    failed: dict[str, str] = field(default_factory=dict)
    """Label of each failed measurement → reason."""
