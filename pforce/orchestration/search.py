"""Searches over trainings: an Optuna study suggests points of a space, workers train and measure them, and the records'
means are told to it.

What the records hold inside the space is told first. A trial that was under way when its driver was killed is in the
study, so the next driver finishes it; several drivers share a study's trials as they share a sweep's cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pforce.base.errors import ConfigError, InputError
from pforce.base.words import counted
from pforce.data import Manifest
from pforce.orchestration.display import Display
from pforce.orchestration.growth import LOOK_SECONDS, keep_sweep
from pforce.orchestration.ladder import Ladder
from pforce.orchestration.objectives import mean_of
from pforce.orchestration.plan import Plan, Supply, check_cell, entry_of, finished_of
from pforce.orchestration.recorded import sweep_of_name
from pforce.orchestration.rungs import in_words
from pforce.orchestration.search_goal import SearchSettings, Unbegun, goal_of
from pforce.orchestration.study import SAME, Study
from pforce.orchestration.sweep import TRIAL, Cell, Point, Work
from pforce.records.lease import LeaseError, held_below
from pforce.records.parts import cell_parts
from pforce.records.row import divergence_of, row_of
from pforce.records.sweeps import read_sweeps
from pforce.results.pictures import pictures_of
from pforce.storage import StorageError
from pforce.trial.folder import TRAINING
from pforce.trial.where import check_data, with_precision

PLAIN = ("grid", "random")
"""Methods whose suggestions do not depend on values."""
MOST_SAME = 10
"""Most trials with another one's cells, per trial that is wanted; then the space counts as exhausted."""
WHY = "pforce.why"
"""Attribute that says why a trial has failed."""


class Search(Supply):
    """The trials of a study as cells of a sweep.

    Args:
        planned: plan of the sweep without its points; it gets them.
    """

    def __init__(self, planned: Plan, settings: SearchSettings) -> None:
        self.plan, self.settings = planned, settings
        self.goal = goal_of(planned, settings)
        self.space, self.objectives, self.requirements = self.goal.space, self.goal.objectives, self.goal.requirements
        self.trials, grid, early = self.goal.trials, self.goal.grid, self.goal.early
        base, name, ledger = planned.sweep.base, planned.sweep.name, planned.ledger
        self.ladder = None if early is None else Ladder(early, base, name, ledger)
        """The rungs at which trials may stop; None trains all to their budget."""
        self.works: dict[int, list[Work]] = {}
        """Trial → its whole cells, one per seed."""
        self.study = Study(
            planned.options.place, planned.sweep.name, settings.study, space=self.space, objectives=self.objectives,
            requirements=self.requirements, method=settings.method, seed=settings.seed, trials=self.trials, grid=grid,
        )  # fmt: skip
        self.manifest = Manifest.load(planned.data)
        self.detector = planned.sweep.base.evaluation.load_detector()
        self.points: dict[int, Point] = {}
        self.settled: set[int] = set()
        """Trials whose values the study knows."""
        self.retried: set[int] = set()
        """Trials that diverged before and are tried again (--again diverged)."""
        self.same: set[int] = set()
        """Trials whose cells are another trial's."""
        self.look_at = 0.0
        """Time of the next look at the rungs, on the clock of `time.monotonic`."""
        self.exhausted = False
        self.own = 0
        """Number of trials that the search has suggested, when the study was last read."""
        self.told = 0
        """Number of trials of this call that come from records."""
        self.problem = ""
        """The last error of the study or the bucket, so that it is said once."""

    # --- before it starts ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Tell the study what the records hold, and put its trials into the plan, but those that other drivers are
        training."""
        with self.study.alone():
            self._tell_known()
        trials, self.own = self.study.usable, len(self.study.own)
        running = {trial.number: self._trainings(trial) for trial in trials if not trial.state.is_finished()}
        trainings = {each for several in running.values() for each in several}
        # With nothing else to do this driver waits for the others', as its table would not be whole without them.
        held = held_below(self.plan.options.place, TRAINING, trainings) if self.unasked else set()
        self._take([trial for trial in trials if not held & running.get(trial.number, set())])
        self.plan.look()
        if "diverged" in self.plan.options.again:
            self.retried = {number for number, works in self.works.items() if self._diverged(works)}
        self._settle()
        self.own = len(self.study.own)  # without those that are no experiments
        self.update()

    def update(self) -> None:
        """Give the plan's sweep all points."""
        points = tuple(self.points[number] for number in sorted(self.points))
        self.plan.sweep = replace(self.plan.sweep, points=points)

    def _trainings(self, trial: FrozenTrial) -> set[str]:
        """Digests of a trial's trainings."""
        point = Point(trial.number, self.study.values(trial) or {})
        works = (self._work(point, seed) for seed in self.plan.sweep.seeds)
        return {work.training for work in works if isinstance(work, Work)}

    def _tell_known(self) -> None:
        """Tell the study the points of its space that are measured with all seeds of the sweep."""
        plan, sweep = self.plan, self.plan.sweep
        known = {_key(trial.params) for trial in self.study.usable}
        seen: dict[str, tuple[dict[str, Any], dict[int, Work], str]] = {}
        for entry in read_sweeps(plan.options.place, plan.ledger.say):
            for cell in entry.cells:
                params = self.space.parameters(cell.params) if cell.seed in sweep.seeds else None
                if params is None or _key(params) in known:
                    continue
                values = self.study.values_of(params)
                work = self._work(Point(-1, values), cell.seed) if values is not None else None
                if isinstance(work, Work) and work.fingerprint == cell.cell:
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
    def unasked(self) -> int:
        """Number of cells of trials that are still to be suggested."""
        return 0 if self.exhausted else max(0, self.trials - self.own) * len(self.plan.sweep.seeds)

    @property
    def left(self) -> int:
        waiting = 0 if self.ladder is None else self.ladder.may_go_on(self.settled)
        return self.unasked + waiting * len(self.plan.sweep.seeds)

    def added(self, display: Display, *, waiting: int, running: int) -> list[Work]:
        if waiting or (running and not self.unasked and not self._may_decide()):
            return []
        try:
            return self._added(display, running)
        except (ConfigError, StorageError, LeaseError) as error:
            if not running:
                raise
            if str(error) != self.problem:  # trainings go on meanwhile, and the next look asks again
                self.problem = str(error)
                display.line(f"warning: {error}")
            return []

    def _added(self, display: Display, running: int) -> list[Work]:
        while True:
            self._settle()
            # A model learns from trials that have gone far; without one, all trials meet at a rung.
            ahead = self._climb() if self.settings.method not in PLAIN else []
            with self.study.alone():
                self.own = len(self.study.own)
                trial = self.study.ask() if self.unasked and not ahead else None
                self.exhausted |= (trial is None and self.unasked > 0) or len(self.same) > MOST_SAME * self.trials
                self.own += trial is not None
            if trial is None:
                new = ahead or self._climb()
                # Others' trials come last: while their drivers live, a worker would only wait for them.
                new = new or ([] if running else self._take(self.study.usable))
                display.extend(len(new))
            else:
                new = self._take([trial], display)
            if not new and trial is None:
                return []
            keep_sweep(self.plan)
            self.plan.ledger.refresh()
            if "diverged" in self.plan.options.again:
                self.plan.forget_divergences(new)
            done = finished_of(new, self.plan.ledger)
            self.plan.done |= done
            display.extend(0, done=len(done))
            if missing := [item for item in new if item.fingerprint not in done]:
                return missing

    def _may_decide(self) -> bool:
        """Whether it is time to look at the rungs: after each trial that has ended, and now and then, as other drivers
        measure some."""
        due = self.ladder is not None and time.monotonic() >= self.look_at
        if due:
            self.look_at = time.monotonic() + LOOK_SECONDS
        return due

    def _climb(self) -> list[Work]:
        """The cells at their next rung of the trials that go on; those that stop are told to the study."""
        if self.ladder is None:
            return []
        go, stop = self.ladder.advance(self.settled, len(self.study.trials), more=self.unasked > 0)
        for number in stop:
            self.study.stop(number)
            self.settled.add(number)
        return [work for work in self.ladder.cells(go) if self._put(work)]

    def ended(self, item: Work) -> None:
        self.look_at = 0.0
        self.plan.ledger.refresh()
        self.retried -= {n for n, works in self.works.items() if item.fingerprint in _digests(works)}
        try:
            self._settle()
        except (ConfigError, StorageError) as error:  # the next look tells it
            self.problem = str(error)
            self.plan.ledger.say(self.problem)

    def _take(self, trials: Sequence[FrozenTrial], display: Display | None = None) -> list[Work]:
        """Put trials into the plan; one that is no valid experiment is told as failed. Returns the cells that are new
        to the plan."""
        found = []
        for trial in trials:
            values = None if trial.number in self.works else self.study.values(trial)
            if SAME in trial.user_attrs:
                self.same.add(trial.number)
            if values is None:
                continue
            point = Point(trial.number, values)
            works = [self._work(point, seed) for seed in self.plan.sweep.seeds]
            wrong = next((each for each in works if isinstance(each, Exception)), None)
            if wrong is not None:
                if not trial.state.is_finished():
                    told = f"trial {trial.number} is no experiment here, and counts as failed: {wrong}"
                    (display.line if display else self.plan.ledger.say)(told)
                    self.study.note(trial.number, WHY, str(wrong))
                    self.study.tell(trial.number, None)
                continue
            whole = [work for work in works if isinstance(work, Work)]
            cells = _digests(whole)
            if SAME not in trial.user_attrs and not trial.state.is_finished():
                self._compare(trial.number, cells, whole[0].label, display)
            self.works[point.number] = whole
            if trial.number not in self.same:
                self.points[point.number] = point
                first = whole if self.ladder is None else self._on_ladder(trial, whole)
                found += [work for work in first if self._put(work)]
        return found

    def _on_ladder(self, trial: FrozenTrial, whole: list[Work]) -> list[Work]:
        """A trial's cells at the rung that it has reached."""
        assert self.ladder is not None
        if trial.state in (TrialState.COMPLETE, TrialState.FAIL):
            return whole
        works = self.ladder.take(trial.number, whole)
        if trial.state == TrialState.PRUNED:
            self.ladder.stopped[trial.number] = works[0].parts.images_seen
        return works

    def _compare(self, number: int, cells: list[str], label: str, display: Display | None) -> None:
        """Note where a trial's cells are another's, as values may have one distribution: it is told the same numbers,
        and another one takes its place."""
        other = next((n for n, own in self.works.items() if _digests(own) == cells and n not in self.same), None)
        if other is None:
            return
        self.same.add(number)
        self.study.note(number, SAME, other)
        told = f"{label}: the same distribution as trial {other}; not trained, and not counted"
        (display.line if display else self.plan.ledger.say)(told)

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

    def _work(self, point: Point, seed: int) -> Work | Exception:
        """A point's cell, checked as a sweep's cells are; the error where it is none."""
        plan = self.plan
        try:
            cell = plan.sweep.cell_of(point, seed)
            experiment = with_precision(cell.experiment, plan.inputs)
            check_cell(experiment, plan.sweep.base, plan.options.workers)
            check_data(experiment, plan.data, self.manifest, self.detector)
            return Work(cell_parts(experiment, plan.inputs), (Cell(cell.values, experiment),))
        except (InputError, ValueError, TypeError) as error:
            return error

    # --- results -------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Tell the study the trials whose cells have all ended."""
        states = {trial.number: trial.state for trial in self.study.usable}
        for number, works in self.works.items():
            if number in self.settled or number in self.retried:
                continue
            if states[number].is_finished():
                self.settled.add(number)
                continue
            rows = [row_of(work.parts, self.plan.ledger) for work in works]
            gone = [self._diverged([work]) for work in works]
            for images, value in self._at_rungs(number):
                self.study.report(number, images, value)
            if not all(row is not None or lost for row, lost in zip(rows, gone, strict=True)):
                continue
            values, beyond = self._values([row.metrics for row in rows if row is not None])
            if any(gone) or values is None:
                self.study.note(number, WHY, "diverged" if any(gone) else "an objective is not a number")
                self.study.tell(number, None)
            else:
                self._attach(number, works[0])
                self.study.tell(number, values, beyond)
            self.settled.add(number)

    def _at_rungs(self, number: int) -> list[tuple[int, float]]:
        """Images seen and value of each rung at which a trial is measured."""
        if self.ladder is None or number not in self.ladder.works:
            return []
        return list(zip(self.ladder.rungs, self.ladder.values(number), strict=False))

    def _diverged(self, works: Sequence[Work]) -> bool:
        parts = [work.parts for work in works]
        return any(row_of(each, self.plan.ledger) is None and divergence_of(each, self.plan.ledger) for each in parts)

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


def _digests(works: Sequence[Work]) -> list[str]:
    return [work.fingerprint for work in works]


def _key(params: Mapping[str, Any]) -> str:
    return repr(sorted(params.items()))


def begin_search(planned: Plan, settings: SearchSettings, *, dry_run: bool) -> Search | None:
    """Give a plan the trials of its search. Returns the search; None for a dry run, which touches no study."""
    if dry_run:
        goal, sweep = goal_of(planned, settings), planned.sweep
        entry = sweep_of_name(sweep, planned.options.place, planned.ledger.say)
        cells = entry.cells if entry else ()
        there = len({text for cell in cells for header, text in cell.values if header == TRIAL})
        planned.supply = Unbegun(max(0, goal.trials - there) * len(sweep.seeds))
        planned.notes.append(f"{counted(goal.trials, 'trial')}, {there} of them there, known points included")
        return None
    search = Search(planned, settings)
    search.begin()
    planned.supply = search
    planned.notes.append(
        f"{settings.method} search for {' and '.join(map(str, search.objectives))}: "
        f"{counted(search.trials, 'trial')}, {search.own} of them there; {search.study.where}"
    )
    if search.ladder is not None:
        planned.notes.append(in_words(search.ladder.settings, search.ladder.rungs))
    if search.told:
        planned.notes.append(f"{counted(search.told, 'point')} of the space told to the study from the records")
    return search
