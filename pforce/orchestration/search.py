"""Searches over trainings: an Optuna study suggests points of a space, workers train and measure them, and the records'
means are told to it.

What the records hold inside the space is told first. A trial that was under way when its driver was killed is in the
study, so the next driver finishes it; several drivers share a study's trials as they share a sweep's cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pforce.base.errors import ConfigError, require, require_one_of
from pforce.base.words import counted
from pforce.orchestration.display import Display
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.objectives import Objective, Requirement, mean_of, parse_objectives, parse_requirements
from pforce.orchestration.plan import Plan, Supply, entry_of, finished_of
from pforce.orchestration.space import Space
from pforce.orchestration.study import METHODS, Method, Study, journal_of
from pforce.orchestration.sweep import Cell, Point, Sweep, Work
from pforce.records.lease import leased
from pforce.records.parts import cell_parts, request_of
from pforce.records.row import divergence_of, row_of
from pforce.records.sweeps import read_sweeps
from pforce.results.shown import pictures_of
from pforce.trial.where import with_precision

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
    space = Space(sweep.axes)
    corners = tuple(axis.with_points(2) if axis.range is not None else axis for axis in sweep.axes)
    if math.prod(len(axis.steps) for axis in corners) <= MOST_CORNERS:
        replace(sweep, axes=corners, seeds=sweep.seeds[:1], points=None)  # each is checked as it is made
    return space


class Unbegun(Supply):
    """A search that has not begun, for a look at what it would take."""

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


class Search(Supply):
    """The trials of a study as cells of a sweep.

    Args:
        planned: plan of the sweep without its points; it gets them.
    """

    def __init__(self, planned: Plan, settings: SearchSettings) -> None:
        sweep, options = planned.sweep, planned.options
        require(
            options.evaluation_workers is None, "evaluation_workers", options.evaluation_workers,
            "None in a search, whose trials are measured as they end",
        )  # fmt: skip
        base = sweep.base
        request = request_of(
            base.evaluation, base.sampler, planned.inputs, classes=base.model.classes,
            difficulty_head=base.model.difficulty_head,
        )  # fmt: skip
        self.plan, self.settings, self.space = planned, settings, space_of(sweep)
        self.objectives: tuple[Objective, ...] = parse_objectives(settings.objectives, base, request)
        self.requirements: tuple[Requirement, ...] = parse_requirements(settings.requirements, base, request)
        grid = self.space.grid(settings.grid) if settings.method == "grid" else ()
        self.trials = min(settings.trials, len(grid)) if grid else settings.trials
        self.study = Study(
            options.place, sweep.name, settings.study, space=self.space, objectives=self.objectives,
            requirements=self.requirements, method=settings.method, seed=settings.seed, trials=self.trials,
            grid=grid,
        )  # fmt: skip
        self.points: dict[int, Point] = {}
        self.cells: dict[int, list[str]] = {}
        """Trial → digests of its cells, one per seed."""
        self.settled: set[int] = set()
        """Trials whose values the study knows."""
        self.exhausted = False
        self.told = 0
        """Number of trials of this call that come from records."""

    # --- before it starts ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Tell the study what the records hold, and put all its trials into the plan."""
        with self._alone():
            self._tell_known()
        self._take(self.study.trials)
        self.plan.look()
        self._settle()
        self.update()

    def update(self) -> None:
        """Give the plan's sweep all points."""
        points = tuple(self.points[number] for number in sorted(self.points))
        self.plan.sweep = replace(self.plan.sweep, points=points)

    def _alone(self) -> Any:
        key = f"study/{self.plan.sweep.name}"
        return leased(self.plan.options.place, key, "asking the study of a search")

    def _tell_known(self) -> None:
        """Tell the study the points of its space that are measured with all seeds of the sweep."""
        plan, sweep = self.plan, self.plan.sweep
        known = {_key(trial.params) for trial in self.study.trials}
        seen: dict[str, tuple[dict[str, Any], dict[int, Work], str]] = {}
        for entry in read_sweeps(plan.options.place, plan.ledger.say):
            for cell in entry.cells:
                params = self.space.parameters(cell.params) if cell.seed in sweep.seeds else None
                if params is None or _key(params) in known:
                    continue
                values = self.study.values_of(params)
                work = self._work(Point(-1, values), cell.seed) if values is not None else None
                if work is not None and work.fingerprint == cell.cell:
                    _, by_seed, _ = seen.setdefault(_key(params), (params, {}, entry.name))
                    by_seed[cell.seed] = work
        for params, by_seed, origin in seen.values():
            rows = [row_of(by_seed[seed].parts, plan.ledger) if seed in by_seed else None for seed in sweep.seeds]
            metrics = [row.metrics for row in rows if row is not None]
            if len(metrics) == len(sweep.seeds):
                means, beyond = self._values(metrics)
                if means is not None:
                    self.study.add(params, means, beyond, origin)
                    self.told += 1

    # --- while it runs -------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        return True

    @property
    def left(self) -> int:
        if self.exhausted:
            return 0
        return max(0, self.trials - len(self.study.own)) * len(self.plan.sweep.seeds)

    def added(self, display: Display, *, waiting: int, running: int) -> list[Work]:
        if waiting:
            return []
        while True:
            with self._alone():
                trial = None if self.exhausted or not self.left else self.study.ask()
                self.exhausted |= trial is None and self.left > 0
            if trial is None:
                # Others' trials come last: while their drivers live, a worker would only wait for them.
                new = [] if running else self._take(self.study.trials)
                display.extend(len(new))
            else:
                new = self._take([trial])
                if trial.number not in self.points:  # it would be asked about for ever
                    self.study.tell(trial.number, None)
            if not new and trial is None:
                return []
            keep_sweep(self.plan)
            self.plan.ledger.refresh()
            done = finished_of(new, self.plan.ledger)
            self.plan.done |= done
            display.extend(0, done=len(done))
            self._settle()
            if missing := [item for item in new if item.fingerprint not in done]:
                return missing

    def ended(self, item: Work) -> None:
        self.plan.ledger.refresh()
        self._settle()

    def _take(self, trials: Sequence[Any]) -> list[Work]:
        """Put trials into the plan. Returns their cells that are new to it."""
        found = []
        for trial in trials:
            values = None if trial.number in self.points else self.study.values(trial)
            if values is None:
                continue
            point = Point(trial.number, values)
            works = [self._work(point, seed) for seed in self.plan.sweep.seeds]
            if any(work is None for work in works):
                self.plan.ledger.say(f"trial {trial.number} of the study is no experiment here; it is left out")
                continue
            self.points[point.number] = point
            self.cells[point.number] = [work.fingerprint for work in works if work is not None]
            found += [work for work in works if work is not None and self._put(work)]
        return found

    def _put(self, work: Work) -> bool:
        """Put a cell into the plan. Returns whether it is new there."""
        work_of = self.plan.work
        same = next((n for n, item in enumerate(work_of) if item.fingerprint == work.fingerprint), None)
        if same is None:
            work_of.append(work)
            return True
        labels = {cell.label for cell in work_of[same].cells}
        if work.label not in labels:
            work_of[same] = Work(work_of[same].parts, (*work_of[same].cells, *work.cells))
        return False

    def _work(self, point: Point, seed: int) -> Work | None:
        try:
            cell = self.plan.sweep.cell_of(point, seed)
        except (ConfigError, ValueError, TypeError):
            return None
        experiment = with_precision(cell.experiment, self.plan.inputs)
        return Work(cell_parts(experiment, self.plan.inputs), (Cell(cell.values, experiment),))

    # --- results -------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Tell the study the trials whose cells have all ended."""
        states = {trial.number: trial.state for trial in self.study.trials}
        for number, cells in self.cells.items():
            if number in self.settled:
                continue
            if states[number].is_finished():
                self.settled.add(number)
                continue
            works = [self.plan.item(cell) for cell in cells]
            rows = [row_of(work.parts, self.plan.ledger) for work in works]
            diverged = [divergence_of(work.parts, self.plan.ledger) is not None for work in works]
            if not all(row is not None or gone for row, gone in zip(rows, diverged, strict=True)):
                continue
            if "diverged" in self.plan.options.again and any(diverged):
                continue  # it is being tried again
            values, beyond = self._values([row.metrics for row in rows if row is not None])
            if any(diverged) or values is None:
                why = "diverged" if any(diverged) else "an objective is not a number"
                self.study.note(number, "pforce.why", why)
                self.study.tell(number, None)
            else:
                self._attach(number, works[0])
                self.study.tell(number, values, beyond)
            self.settled.add(number)

    def _values(self, rows: Sequence[Mapping[str, float]]) -> tuple[list[float] | None, list[float]]:
        """Values of the objectives, None where one is not finite, and how far each requirement is exceeded."""
        values = [mean_of(each.metric, rows) for each in self.objectives]
        beyond = [each.violation(mean_of(each.metric, rows)) for each in self.requirements]
        whole = all(map(math.isfinite, values)) and all(map(math.isfinite, beyond))
        return (values if whole else None), beyond

    def _attach(self, number: int, work: Work) -> None:
        """Add the picture of samples to a trial, for optuna-dashboard. A picture never hurts a search."""
        try:
            pictures = pictures_of(self.plan.options.place, self.plan.ledger, entry_of(work))
            for path in pictures[:1]:
                self.study.attach(number, path)
        except Exception as error:  # whatever a picture's file or the dashboard's store causes
            self.plan.ledger.say(f"trial {number}: its picture is not in the study ({error})")


def _key(params: Mapping[str, Any]) -> str:
    return repr(sorted(params.items()))


def begin_search(planned: Plan, settings: SearchSettings, *, dry_run: bool) -> Search | None:
    """Give a plan the trials of its search. Returns the search; None for a dry run of one that has not begun."""
    journal = journal_of(planned.options.place, planned.sweep.name)
    if dry_run and (settings.study is not None or not journal.exists()):
        space = space_of(planned.sweep)
        most = len(space.grid(settings.grid)) if settings.method == "grid" else settings.trials
        planned.supply = Unbegun(min(most, settings.trials) * len(planned.sweep.seeds))
        return None
    search = Search(planned, settings)
    search.begin()
    planned.supply = search
    own = len(search.study.own)
    planned.notes.append(
        f"{search.settings.method} search for {' and '.join(map(str, search.objectives))}: "
        f"{counted(search.trials, 'trial')}, {own} of them there; {search.study.where}"
    )
    if search.told:
        planned.notes.append(f"{counted(search.told, 'point')} of the space told to the study from the records")
    return search
