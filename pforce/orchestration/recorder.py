"""The recorder of events: it shows them on the page of the work and on the display. Runs in the driver, the same for
sweeps, searches, tables, evaluations and drawings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from pforce.orchestration.display import Display
from pforce.records.status import Status
from pforce.results.shown import point_of
from pforce.tracking import Live, Point, Tags, View
from pforce.trial.task import CurvePoint, Failed, Measure, MeasureImages, Progress, Task, Train, Waiting, Warned

FIGURES = "pforce.results.difficulty_figures"
TRAINING_SHARE = 0.8
"""Share of a trial's bar that is training; the rest is evaluation."""
MOST_ERROR = 2_000
"""Most characters of a failure's message on the display."""


@dataclass(frozen=True)
class Entry:
    """The content of a cell's run."""

    cell: str
    """Digest of the cell."""
    label: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    past: Callable[[], Sequence[Point]] | None = None
    """Function that returns the curve of earlier training."""
    whole: Callable[[], View | None] = lambda: None
    """Function that returns the view of an ended cell from its records."""


class Recorder:
    """Keeps the runs of running cells and closes each as FINISHED, FAILED or KILLED.

    Args:
        live: page of the work; None where it is not shown.
        entries: function from a cell's digest to the content of its run.
        tags: tags of the page's own run.
        units: function from a task to its units on the display.
        folder: folder of the storage, which has the logs of attempts.
    """

    def __init__(
        self,
        live: Live | None,
        display: Display,
        entries: Callable[[str], Entry],
        *,
        tags: Mapping[str, str] | None = None,
        units: Callable[[Task], int] = lambda task: 1,
        folder: Path | None = None,
    ) -> None:
        self.live, self.display, self.entry_of, self.units, self.folder = live, display, entries, units, folder
        self.tags = dict(tags or {})
        """Tags of the page's own run."""
        self.begun = False
        self.open: dict[str, Entry] = {}
        """Digest → entry of the running cells."""
        self.shown: set[str] = set()
        """Digests of the cells whose runs this driver has begun."""
        self.pending: dict[str, dict[str, str]] = {}
        """Digest → tags for its run once it is begun."""
        self.waiting: set[str] = set()
        """Tasks and cells that wait for another process, which may own their runs."""
        self.retried: dict[str, list[str]] = {}
        """Task → reasons of its retries."""
        self.finished: set[str] = set()
        """Digests of the finished cells."""
        self.failed: dict[str, str] = {}
        """Digest of a failed cell → reason."""

    # --- the page's own run --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin or resume the page's own run, once it is certain that there is room for the tasks. TrackingError where
        the store refuses."""
        if self.live is not None:
            self.live.open(self.tags)
        self.begun = True
        # The driver is idle until the first worker is up, which is time to import what the first finished cell needs.
        threading.Thread(target=import_module, args=(FIGURES,), daemon=True).start()

    def close(self, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """End the page's own run."""
        if self.begun and self.live is not None:
            self.live.end(status, tags)

    # --- events --------------------------------------------------------------------------------------------------

    def hand(self, task: Task) -> None:
        """Note that a task is handed out. Runs of its cells are begun once it does its own work; until then another
        driver may be running them."""
        for cell in task.cells:
            if cell not in self.open:
                self.open[cell] = self.entry_of(cell)
        self._show(task, 0.0, "starting")

    def start(self, task: Task) -> None:
        """Note that a task has begun its own work."""
        self._work(task)
        self._show(task, 0.0, "starting")

    def wait(self, task: Task, event: Waiting) -> None:
        """Show that a task waits for another process."""
        text = f"waiting for {event.holder}"
        if task.id not in self.waiting:
            self.display.line(f"{task.label}: {text}")
        self.waiting |= {task.id, *task.cells}
        self._show(task, TRAINING_SHARE if {*task.cells} & self.shown else 0.0, text)

    def progress(self, task: Task, event: Progress) -> None:
        """Show the progress of a task."""
        self._work(task)
        if isinstance(task, Train):
            share = event.share * TRAINING_SHARE
            if event.phase != "training":
                share = TRAINING_SHARE + (1 - TRAINING_SHARE) * event.share
            self._show(task, share, event.phase)
        else:
            self._show(task, event.share, event.phase)

    def curve_point(self, task: Task, event: CurvePoint) -> None:
        """Show a new point of a training's curve."""
        point = event.record
        self._work(task)
        if self.live is not None:
            for cell in task.cells:
                self.live.log(cell, point_of(point))
        images = task.experiment.training.images if isinstance(task, Train) else point.images_seen
        note = f"loss {point.loss:.4f} · {point.images_per_second:.0f} images/s"
        self._show(task, TRAINING_SHARE * point.images_seen / images, note)

    def warn(self, task: Task, event: Warned) -> None:
        """Show a task's warning."""
        self.display.line(f"{task.label}: warning: {event.message}")
        for cell in task.cells:
            self._tag(cell, {Tags.WARNING: event.message})

    def warn_of(self, cell: str, label: str, message: str) -> None:
        """Show a warning about a cell."""
        self.display.line(f"{label}: warning: {message}")
        self._tag(cell, {Tags.WARNING: message})

    def retry(self, task: Task, event: Failed, attempt: int, attempts: int) -> None:
        """Show that an attempt has failed and is retried: the next is number `attempt`, from 1, of at most
        `attempts`."""
        reasons = self.retried.setdefault(task.id, [])
        reasons.append(event.failure.reason)
        goes_on = "resumes from its last checkpoint" if isinstance(task, Train) else "follows"
        self.display.line(f"{task.label}: {event.failure.reason}; attempt {attempt} of {attempts} {goes_on}")
        for cell in task.cells:
            self._tag(cell, {Tags.ATTEMPTS: str(attempt), Tags.RETRIED: "; ".join(reasons)})

    def move(self, task: Task) -> None:
        """Show that a task stopped because its machine is to be taken, and goes on elsewhere."""
        self.display.line(f"{task.label}: stopped, as its node will be taken; it goes on elsewhere from where it was")

    def fail(self, task: Task, event: Failed) -> None:
        """Note that a task has failed for good: its cells are FAILED with its reason; the next call retries them."""
        reason, message = event.failure
        for cell in task.cells:
            self.fail_cell(cell, reason, message, log=event.log)
        text = f"FAILED ({reason}): {message[:MOST_ERROR]}"
        if event.log is not None:
            text += f" (pforce logs {task.id[:12]})" if isinstance(task, Train) else f" (log: {event.log})"
        self.display.end(task.label, text, units=self.units(task))

    def kill(self, task: Task, reason: str) -> None:
        """Note that a task was stopped; the same command resumes it."""
        for cell in task.cells:
            self.kill_cell(cell, reason)
        self.display.end(task.label, None, units=0)

    def give_back(self, task: Task) -> None:
        """Note that a task was not begun, because another process is at it."""
        for cell in task.cells:
            self.open.pop(cell, None)
        self.display.end(task.label, None, units=0)

    def elsewhere(self, cells: Sequence[str]) -> None:
        """Note that other processes have finished cells."""
        for cell in cells:
            self.open.pop(cell, None)
        self.finished |= set(cells)
        self.display.elsewhere(len(cells))

    # --- cells ---------------------------------------------------------------------------------------------------

    def finish(self, cell: str, label: str, note: str, environment: Mapping[str, str] | None = None) -> None:
        """Note that all parts of a cell are there."""
        self._works(cell)
        self._close(cell, "FINISHED", environment or {})
        self.finished.add(cell)
        self.display.end(label, note)

    def fail_cell(self, cell: str, reason: str, message: str, *, log: str | None = None) -> None:
        """Mark a cell as FAILED, but not its run where another driver is running the cell."""
        if cell in self.open and (cell in self.shown or cell not in self.waiting):
            self._works(cell)
            tags = {Tags.REASON: reason, Tags.ERROR: message}
            if reason == "diverged":  # the one failure that is a record
                self._close(cell, "FAILED", tags)
            elif self.live is not None:
                self.live.tag(cell, tags)
                path = None if log is None or self.folder is None else self.folder / log
                self.live.close(cell, "FAILED", files=[path] if path is not None and path.exists() else ())
        self.open.pop(cell, None)
        self.failed[cell] = reason

    def kill_cell(self, cell: str, reason: str) -> None:
        """Mark a cell that was stopped from outside as KILLED, but not its run where another driver is running the
        cell."""
        self.open.pop(cell, None)
        if cell in self.shown and self.live is not None:
            self.live.tag(cell, {Tags.REASON: reason})
            self.live.close(cell, "KILLED")

    def kill_all(self, reason: str) -> None:
        """Call `kill_cell` for all running cells."""
        for cell in list(self.open):
            self.kill_cell(cell, reason)

    def _work(self, task: Task) -> None:
        self.waiting.discard(task.id)
        for cell in task.cells:
            self._works(cell)

    def _works(self, cell: str) -> None:
        """Begin or resume the run of a cell that this driver works on."""
        if self.live is None:
            return
        if cell in self.shown:
            if cell in self.waiting:
                self.live.again(cell)
        else:
            self.shown.add(cell)
            entry = self.open.get(cell) or self.entry_of(cell)
            tags = {**entry.tags, **self.pending.pop(cell, {})}
            self.live.start(cell, entry.label, entry.params, tags, entry.past)
        self.waiting.discard(cell)

    def _tag(self, cell: str, tags: dict[str, str]) -> None:
        """Set tags of a cell's run, now or once it is made."""
        if cell in self.shown and self.live is not None:
            self.live.tag(cell, tags)
        else:
            self.pending.setdefault(cell, {}).update(tags)

    def _close(self, cell: str, status: Status, tags: Mapping[str, str]) -> None:
        entry = self.open.pop(cell, None) or self.entry_of(cell)
        if self.live is not None:
            self.live.tag(cell, dict(tags))
            self.live.close(cell, status, entry.whole)

    def advance(self, task: Task) -> None:
        """Advance the display by a task that is one of many and needs no line."""
        self.display.end(task.label, None, units=self.units(task))

    def _show(self, task: Task, share: float, note: str) -> None:
        """Show a task's bar; ranges of images, of which there may be hundreds, have none."""
        if isinstance(task, Train | MeasureImages) or (isinstance(task, Measure) and task.what == "all"):
            self.display.update(task.label, share, note, units=self.units(task))
