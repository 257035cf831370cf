"""The page of a running sweep: reports of its trials are shown once per second, without making them wait.

Reports are kept here until the store has them. While the store is unreachable, the sweep continues; reports that are
not shown at its end are shown by the next call of the same command, or by `pforce mirror`, from the storage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pforce.base.words import counted
from pforce.records.status import KILLED, RUNNING, Status
from pforce.tracking.changes import Changing, GoneError, Sums, Trial, flush_seconds, looked_up, now
from pforce.tracking.checks import TrackingError, short_requests, transient, why
from pforce.tracking.mirror import Mirror
from pforce.tracking.page import Page, Progress, Run
from pforce.tracking.view import Point, Tags, View

PERIOD_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0
OPEN_SECONDS = 10.0
JOIN_SECONDS = 2.0
ATTEMPTS = 12
"""Attempts at a run that the store refuses although it takes others, or whose records are not there yet; then the run
is given up."""
CATCH_UP = "the next call of the same command shows what is missing, and so does `pforce mirror`"

Say = Callable[[str], None]


class Live:
    """The page of a running sweep. Its methods note a change and return; only `open`, `flush` and `finish` wait for the
    store.

    As a context manager it starts its thread and ends it.

    Args:
        name, identity: name and identity of the sweep.
        say: called with lines for the user.
        before: called once in its thread with the page, the id of the sweep's run, and `between`, which it calls now
            and then: shows results of earlier calls that are not shown yet.
        own: called in its thread with the status of the sweep's own run for what that shows, while the sweep runs, now
            and then, and at its end; None where there is nothing to show yet.
    """

    def __init__(
        self, mirror: Mirror, name: str, identity: str, say: Say,
        before: Callable[[Page, str, Progress], object] = lambda page, parent, between: None, *,
        own: Callable[[Status], View | None] | None = None,
    ) -> None:  # fmt: skip
        flush_seconds()  # a wrong value is reported now
        self.sums = Sums(own)
        self.mirror, self.name, self.identity, self.say, self.before = mirror, name, identity, say, before
        self.tracker = mirror.tracker
        self.changed = threading.Condition()
        self.trials: dict[str, Trial] = {}
        """Digest of the cell → trial; the sweep's own run has the sweep's identity as its key."""
        self.page: Page | None = None
        self.caught_up = False
        self.progress = time.monotonic()
        self.away_since: float | None = None
        self.problem: str | None = None
        """Reason why the store takes nothing at present."""
        self.refusal: str | None = None
        self.incomplete = 0
        """Number of runs of finished trials whose records could not be found."""
        self.stopping = False
        self.thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    # --- reports -------------------------------------------------------------------------------------------------

    def open(self, tags: Mapping[str, str]) -> None:
        """Begin the sweep. Waits at most OPEN_SECONDS for the store's answer; TrackingError where the store refuses."""
        own = {Tags.KIND: "sweep", Tags.SWEEP: self.identity, **tags}
        with self.changed:
            self.trials[self.identity] = Trial(self.name, own)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self._is_open() or self.problem is not None, OPEN_SECONDS)
            problem = self.refusal if self._is_open() else self.problem
        if problem is not None:
            self.end(KILLED)  # if the store comes back, this sweep is not running
            raise TrackingError(f"tracking store {self.tracker.shown} cannot be written: {problem}")

    def _is_open(self) -> bool:
        return self.page is not None and not self._waiting()

    def start(
        self, cell: str, name: str, params: Mapping[str, str], tags: Mapping[str, str],
        past: Callable[[], Sequence[Point]] | None = None,
    ) -> None:  # fmt: skip
        """Begin a trial, or begin it again.

        Args:
            past: function that returns the curve of earlier training.
        """
        about = {Tags.KIND: "trial", Tags.FINGERPRINT: cell, **tags}
        with self.changed:
            before = self.trials.get(cell)
            changes = before.changes + 1 if before else 1
            self.trials[cell] = Trial(
                name, about, params, past=past, changes=changes, run=before.run if before else None
            )
            self.changed.notify_all()

    def again(self, cell: str) -> None:
        """Note that another process has run the trial meanwhile, so that its run is looked up again."""
        with self._changing(cell) as trial:
            trial.run = None

    def log(self, cell: str, point: Point) -> None:
        """Add a point to a trial's curve."""
        with self._changing(cell) as trial:
            trial.points.append(point)

    def tag(self, cell: str, tags: Mapping[str, str]) -> None:
        """Add tags to a trial."""
        with self._changing(cell) as trial:
            trial.tags |= tags

    def close(
        self, cell: str, status: Status, whole: Callable[[], View | None] | None = None, *, files: Sequence[Path] = ()
    ) -> None:
        """End a trial.

        Args:
            whole: function that returns its view from its records, or None where they are not there.
            files: files for its run, where there is no such view.
        """
        with self._changing(cell) as trial:
            trial.status, trial.ended, trial.whole, trial.files = status, now(), whole, files
            trial.refused, trial.failures = False, 0  # what refused it may be mended
            self.sums.ended += 1

    def end(self, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """End the sweep."""
        if self.identity in self.trials:
            self.tag(self.identity, tags or {})
            self.close(self.identity, status, self.sums.at_end(status))

    def _changing(self, cell: str) -> Changing:
        return Changing(self.changed, self.trials[cell])

    # --- the thread that shows it --------------------------------------------------------------------------------

    def _waiting(self) -> list[str]:
        """Trials with reports that their runs do not show yet."""
        return [cell for cell, trial in self.trials.items() if trial.shown < trial.changes and not trial.refused]

    def _idle(self) -> bool:
        return not self._waiting() and (self.caught_up or not self.trials)

    def _work(self) -> None:
        pause, last = FIRST_PAUSE_SECONDS, 0.0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopping or not self._idle())
                # At most once per second; the first report, and trials that end, at once.
                due = last + PERIOD_SECONDS
                while not (self.stopping or self._urgent()) and time.monotonic() < due:
                    self.changed.wait(due - time.monotonic())
                if self.stopping:
                    return
            last = time.monotonic()
            try:
                self._show()
            except Exception as error:  # whatever a store raises must not end the sweep
                self._away(why(error))
                with self.changed:
                    self.changed.wait_for(lambda: self.stopping, pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            pause = FIRST_PAUSE_SECONDS
            self._back()

    def _urgent(self) -> bool:
        return any(self.trials[cell].status != RUNNING and not self.trials[cell].failures for cell in self._waiting())

    def _show(self) -> None:
        self.tracker.again()
        while not self.stopping:
            try:
                self._show_all()
                return
            except GoneError:
                self._forget()

    def _show_all(self) -> None:
        if self.page is None:
            self.page = self.mirror.page(self.name, {self.identity, *self.trials})
        self._show_waiting()
        parent = self._parent()
        if not self.caught_up and (parent is not None or self.page.deleted):
            try:
                if parent is not None:
                    self.before(self.page, parent, self.between)
            except Exception as error:
                if transient(error):
                    raise
                self.say(f"warning: results of earlier calls are not shown in {self.tracker.shown}: {why(error)}")
            with self.changed:
                self.caught_up = True
                self.changed.notify_all()
        self._sum_up()

    def _sum_up(self) -> None:
        """Bring the sweep's own run up to date while the sweep runs, where trials have ended."""
        trial, page = self.trials[self.identity], self.page
        run = trial.run
        if run is None or run.deleted or trial.ended is not None or page is None or page.deleted:
            return
        with self.sums.due() as own:
            found = None if own is None else looked_up(self.say, trial, own, "table")
            if found is None:
                return
            # What the driver says of its run stands, and so does what another driver says at the end.
            tags = {name: value for name, value in found.tags.items() if name not in trial.tags}
            self.sums.bring(page, run, replace(found, tags=tags, ended=None), self.say)

    def _show_waiting(self) -> None:
        assert self.page is not None
        with self.changed:
            waiting = self._waiting()
        for cell in waiting:
            if self.stopping:
                return
            self._show_trial(cell, self.page)
            self._moved()

    def between(self, done: int) -> None:
        """Show reports that have come meanwhile; `before`, which may take minutes, calls this now and then."""
        self._moved()
        self._show_waiting()

    def _moved(self) -> None:
        with self.changed:
            self.progress = time.monotonic()
            self.changed.notify_all()

    def _forget(self) -> None:
        """Forget all runs because the store has lost some: they are looked up again, and lost ones are made again."""
        with self.changed:
            self.page, self.caught_up = None, False
            for trial in self.trials.values():
                trial.run, trial.shown = None, 0

    def _parent(self) -> str | None:
        own = self.trials.get(self.identity)
        return own.run.run_id if own and own.run else None

    def _show_trial(self, cell: str, page: Page) -> None:
        """Show the changes of a trial. Raises the store's error where it is unreachable or has lost the run."""
        trial = self.trials[cell]
        if trial.past is not None:
            past, trial.past = looked_up(self.say, trial, trial.past, "curve so far"), None
            with self.changed:
                trial.points[:0] = past or ()
        with self.changed:
            changes, points, tags = trial.changes, list(trial.points), dict(trial.tags)
            status, ended, files = trial.status, trial.ended, trial.files
        try:
            view = View(trial.name, tags, trial.params, status=status, started=trial.started, ended=ended,
                        points=lambda: points, files=lambda: files)  # fmt: skip
            if cell == self.identity and trial.whole is not None and not page.deleted:
                self._bring(page, cell, trial, view, "")  # its end first: making its table may take longer than a stop
            content, whole = "", looked_up(self.say, trial, trial.whole, "numbers") if trial.whole else None
            if whole is not None:
                curve = looked_up(self.say, trial, whole.points, "curve")
                view = whole.with_tags({**tags, **whole.tags}).with_points(points if curve is None else curve)
                if cell == self.identity:  # which has ended when its driver has, whatever its cells did
                    view = replace(view, started=trial.started, ended=ended)
                content = "" if curve is None else whole.content
            if not page.deleted:
                self._bring(page, cell, trial, view, content)
        except GoneError:
            raise
        except Exception as error:  # every kind of store raises its own
            if transient(error) and not self.mirror.answers():
                raise
            trial.failures += 1
            if transient(error) and trial.failures < ATTEMPTS:
                return
            trial.refused, self.refusal = True, why(error)
            self.mirror.refuse(trial.run, trial.name, error, self.say)
            return
        if trial.whole is not None and not content and not page.deleted and cell != self.identity:
            trial.failures += 1  # its records are not visible yet: a network file system may take a minute
            if trial.failures < ATTEMPTS:
                return
            self.incomplete += 1
        with self.changed:
            trial.shown, trial.failures = changes, 0

    def _bring(self, page: Page, cell: str, trial: Trial, view: View, content: str) -> None:
        key = page.key(cell)
        if trial.run is None:
            above = None if cell == self.identity else self._parent()
            doubtful, trial.doubtful = trial.doubtful, True
            trial.run = page.ensure({key: view}, above).get(key)
            trial.doubtful = doubtful
        elif trial.ended is not None:
            trial.run.read, trial.run.steps = False, None  # other processes may have changed it meanwhile
        if trial.run is None or trial.run.deleted:
            return
        run = trial.run
        try:
            page.bring(run, view, content)
            if trial.doubtful and trial.ended is not None:
                page.find([key], run.run_id)  # removes a second one that a server has made too late
        except Exception as error:
            if transient(error):
                raise
            # It may be refused, deleted by a person, gone with its database, or replaced by another process.
            trial.run = self._look_again(page, key, run)
            if trial.run.run_id == run.run_id and not trial.run.deleted:
                raise
            if not trial.run.deleted:
                page.bring(trial.run, view, content)

    def _look_again(self, page: Page, key: str, run: Run) -> Run:
        """The run of a key. GoneError where it or its page is not there."""
        try:
            page.client.get_experiment(page.experiment_id)
            return replace(page.find([key], run.run_id)[key], filing=run.filing)
        except Exception as error:
            if transient(error):
                raise
            raise GoneError from error

    def _away(self, reason: str) -> None:
        with self.changed:
            first, self.problem = self.problem is None, reason
            self.away_since = time.time() if first else self.away_since
            self.changed.notify_all()
        if first:
            since = time.strftime("%H:%M:%S", time.localtime(self.away_since))
            self.say(
                f"warning: tracking store {self.tracker.shown} has been away since {since}: {reason}. Training "
                "continues, and its results are in the storage"
            )

    def _back(self) -> None:
        with self.changed:
            since = self.away_since
            self.progress = time.monotonic()
            self.away_since = self.problem = None
            self.changed.notify_all()
        if since is not None:
            self.say(f"tracking store {self.tracker.shown} is back after {time.time() - since:.0f} s; it shows all")

    def flush(self, *, limit: float = float("inf")) -> int:
        """Wait until everything is shown, at most PFORCE_FLUSH_SECONDS without progress. Returns the number of
        incomplete runs.

        Args:
            limit: most seconds to wait in total.
        """
        patience, started = flush_seconds(), time.monotonic()
        with self.changed:
            while not self._idle():
                left = min(max(self.progress, started) + patience, started + limit) - time.monotonic()
                if left <= 0:
                    break
                self.changed.wait(min(left, 1.0))
            return len(self._waiting()) + self.incomplete

    def finish(self, *, limit: float = float("inf")) -> int:
        """Call `flush`, and report what is missing and how it will be shown. Returns the number of incomplete runs."""
        left = self.flush(limit=limit)
        if left:
            self.say(f"{counted(left, 'run')} of {self.tracker.shown} not shown in full yet: {CATCH_UP}")
        elif self.trials and not self.caught_up:
            self.say(f"{self.tracker.shown} may lack results of earlier calls: {CATCH_UP}")
        self.mirror.say_refused(self.say)
        return left

    def catch_up(self) -> None:
        """Call `before` once more, because the storage may hold more by now."""
        with self.changed:
            self.caught_up = False
            self.changed.notify_all()

    # --- start and end -------------------------------------------------------------------------------------------

    def __enter__(self) -> Live:
        # MLflow's own retries would hide that the store is unreachable, and delay the thread's end.
        self.requests = short_requests()
        self.requests.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.thread.join(timeout=JOIN_SECONDS)  # a thread that waits for an answer ends with the process
        self.requests.__exit__(None, None, None)
