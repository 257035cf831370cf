"""Objectives and requirements of a search: recorded metrics that it makes small or large, or keeps within a limit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pforce.base.errors import ConfigError, did_you_mean
from pforce.config import Experiment
from pforce.metrics.distances import KINDS_OF, metric_name, of_further
from pforce.metrics.names import CALIBRATION, COSTS, DIFFICULTY, VALIDATION_LOSS, CostName, MetricName
from pforce.records.parts import Request
from pforce.reproduction import metric_of
from pforce.results import smaller_is_better

ONE_COST = tuple(name for name in COSTS if not name.startswith("cost/trunk"))
_REQUIREMENT = re.compile(r"\s*(?P<metric>[\w./]+)\s*(?P<sign><=|>=)\s*(?P<limit>[-+\w.]+)\s*")


@dataclass(frozen=True)
class Objective:
    """A recorded metric that a search makes small, or large."""

    metric: str
    maximize: bool = False

    def __str__(self) -> str:
        return f"{'max' if self.maximize else 'min'}:{self.metric}"

    @property
    def direction(self) -> str:
        """Optuna's word for the direction."""
        return "MAXIMIZE" if self.maximize else "MINIMIZE"


@dataclass(frozen=True)
class Requirement:
    """A limit of a recorded metric; points beyond it are never the best."""

    metric: str
    at_most: bool
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {self.limit:g}"

    def violation(self, value: float) -> float:
        """Distance beyond the limit; 0 or less where it is kept, infinite for an undefined number."""
        if math.isnan(value):
            return math.inf
        return value - self.limit if self.at_most else self.limit - value


def recorded_names(experiment: Experiment, request: Request) -> list[str]:
    """Names of the metrics that every cell of an experiment records, without those of single deciles and contexts."""
    detectors = {experiment.evaluation.detector_name: request.metrics}
    detectors |= {other["name"]: of_further(request.metrics) for other in request.further}
    named = [
        metric_name(kind, detector)
        for detector, metrics in detectors.items()
        for metric in metrics
        for kind in KINDS_OF[metric]
        if kind != "sfd" or detector == "inception"
    ]
    times = [float(time) for time in request.difficulty]
    of_times = [str(MetricName(kind, t=time)) for kind in (*DIFFICULTY, CALIBRATION[0]) for time in times]
    return [VALIDATION_LOSS, *named, *of_times, *ONE_COST]


def recorded_name(option: str, text: str, experiment: Experiment, request: Request) -> str:
    """A metric's whole name. ConfigError for one that the experiment's cells do not record."""
    name = metric_of(text, experiment.evaluation.detector_name)
    known = recorded_names(experiment, request)
    if name not in known:
        raise ConfigError(f"{option} {text}: no cell of this sweep records it; {did_you_mean(name, known)}")
    return name


def parse_objectives(texts: Sequence[str], experiment: Experiment, request: Request) -> tuple[Objective, ...]:
    """Objectives of METRIC, min:METRIC or max:METRIC; without any, the Fréchet distance, or where none is measured the
    validation loss. ConfigError for a metric that no cell records, or that is there twice."""
    if not texts:
        known = recorded_names(experiment, request)
        texts = [
            next((name for name in known if name == metric_of("fd", experiment.evaluation.detector_name)), known[0])
        ]
    found: list[Objective] = []
    for text in texts:
        direction, sign, rest = text.partition(":")
        chosen = bool(sign) and direction in ("min", "max")
        metric = recorded_name("--objective", rest if chosen else text, experiment, request)
        maximize = direction == "max" if chosen else not smaller_is_better(metric)
        if metric in [each.metric for each in found]:
            raise ConfigError(f"--objective {text}: is there twice")
        found.append(Objective(metric, maximize))
    return tuple(found)


def parse_requirements(texts: Sequence[str], experiment: Experiment, request: Request) -> tuple[Requirement, ...]:
    """Requirements of `METRIC <= NUMBER` or `METRIC >= NUMBER`. ConfigError as `parse_objectives`."""
    found = []
    for text in texts:
        match = _REQUIREMENT.fullmatch(text)
        try:
            limit = float(match["limit"]) if match else math.nan
        except ValueError:
            limit = math.nan
        if match is None or not math.isfinite(limit):
            raise ConfigError(
                f'--require "{text}": is METRIC <= NUMBER or METRIC >= NUMBER, such as "{CostName.NFE} <= 24"'
            )
        found.append(
            Requirement(recorded_name("--require", match["metric"], experiment, request), match["sign"] == "<=", limit)
        )
    return tuple(found)


def mean_of(metric: str, rows: Sequence[Mapping[str, float]]) -> float:
    """The mean of a metric over the seeds of a point; NaN where one has none."""
    return sum(row.get(metric, math.nan) for row in rows) / len(rows) if rows else math.nan
