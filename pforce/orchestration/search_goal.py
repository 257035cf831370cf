"""What a search is for: its space, objectives and requirements, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pforce.base.errors import ConfigError, require, require_one_of
from pforce.config import Experiment
from pforce.orchestration.display import Display
from pforce.orchestration.objectives import (
    Objective,
    Requirement,
    parse_objectives,
    parse_requirements,
    recorded_name,
)
from pforce.orchestration.plan import Plan, Supply
from pforce.orchestration.rungs import RungSettings, require_single
from pforce.orchestration.space import Space
from pforce.orchestration.study import METHODS, Method
from pforce.orchestration.sweep import Sweep, Work
from pforce.records.parts import Request, request_of

READ_ONCE = (
    "evaluation.detector", "evaluation.detector_weights", "evaluation.further_detectors", "evaluation.reference",
)  # fmt: skip
MOST_TRIALS = 100_000
MOST_CORNERS = 256
"""Most corners of a space that are tried as experiments before a search starts."""


@dataclass(frozen=True)
class SearchSettings:
    """The method, length and goal of a search."""

    method: Method
    trials: int
    """Number of trials that the search suggests, those of earlier calls included."""
    objectives: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    seed: int = 0
    study: str | None = None
    """Address of the study's database; None for a journal in the storage."""
    grid: int | None = None
    """Number of points of each range, for the method grid."""
    early: RungSettings | None = None
    """When trials are stopped early; None trains all to their budget."""

    def __post_init__(self) -> None:
        require_one_of("search", self.method, METHODS)
        require(1 <= self.trials <= MOST_TRIALS, "trials", self.trials, f"1 to {MOST_TRIALS:,}")
        require(0 <= self.seed < 2**32, "search_seed", self.seed, "0 to 2^32 − 1")
        require(
            self.grid is None or self.method == "grid",
            "grid",
            self.grid,
            "given with --search grid, or without --search",
        )


def space_of(sweep: Sweep) -> Space:
    """The space of a sweep's axes. ConfigError where its cells are no points of one, or its corners no experiments."""
    if sweep.rows:
        raise ConfigError("--rows: names each row, so there is nothing to search; leave --search out, or give axes")
    if sweep.base.training.snapshots:
        raise ConfigError("training.snapshots: a search measures each trial once, at its end; set it to ()")
    for path in sweep.paths:
        if path.startswith("data.") or path in READ_ONCE:
            raise ConfigError(
                f"{path}: is read once for all cells, so it cannot be an axis; run one search for each value"
            )
    space = Space(sweep.axes)
    corners = tuple(axis.with_points(2) if axis.range is not None else axis for axis in sweep.axes)
    if math.prod(len(axis.steps) for axis in corners) <= MOST_CORNERS:
        replace(sweep, axes=corners, seeds=sweep.seeds[:1], points=None)  # each is checked as it is made
    return space


class Unbegun(Supply):
    """A search that does not begin, for a look at what it would take."""

    def __init__(self, cells: int) -> None:
        self.cells = cells

    def added(self, display: Display, *, waiting: int, running: int) -> list[Work]:
        return []

    def ended(self, item: Work) -> None:
        pass

    @property
    def open(self) -> bool:
        return False

    @property
    def left(self) -> int:
        return self.cells


class Goal(NamedTuple):
    """What a search is for."""

    space: Space
    objectives: tuple[Objective, ...]
    requirements: tuple[Requirement, ...]
    grid: Sequence[Mapping[str, Any]]
    """Parameters of all points, for the method grid."""
    trials: int
    early: RungSettings | None
    """When trials stop early, with the metric's whole name."""


def _early(settings: SearchSettings, base: Experiment, request: Request) -> RungSettings | None:
    early = settings.early
    if early is None:
        return None
    early.levels(base)
    return replace(early, metric=recorded_name("--rung-metric", early.metric, base, request))


def goal_of(planned: Plan, settings: SearchSettings) -> Goal:
    """The goal of a search. ConfigError where its space, an objective or a requirement does not fit the sweep, or an
    option does not fit a search."""
    sweep, apart = planned.sweep, planned.options.evaluation_workers
    told = "None in a search, whose trials are measured as they end"
    require(apart is None, "evaluation_workers", apart, told)
    base, space = sweep.base, space_of(sweep)
    request = request_of(
        base.evaluation, base.sampler, planned.inputs, classes=base.model.classes,
        difficulty_head=base.model.difficulty_head,
    )  # fmt: skip
    grid = space.grid(settings.grid) if settings.method == "grid" else ()
    objectives, early = parse_objectives(settings.objectives, base, request), _early(settings, base, request)
    if early is not None:
        require_single(objectives, sweep.paths)
    return Goal(
        space, objectives,
        parse_requirements(settings.requirements, base, request), grid,
        min(settings.trials, len(grid)) if grid else settings.trials, early,
    )  # fmt: skip
