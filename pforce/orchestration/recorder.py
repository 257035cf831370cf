"""What becomes of events: they go onto the page of the work and onto the display. Runs in the driver, the same for
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
"""Characters of a failure's message on the display."""


@dataclass(frozen=True)
class Entry:
    """What is shown of a cell."""

    cell: str
    """Its digest."""
    label: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    past: Callable[[], Sequence[Point]] | None = None
    """Its curve as far as it was trained before."""
    whole: Callable[[], View | None] = lambda: None
    """What its run shows once it has ended."""


class Recorder:
    """Keeps the runs of the cells under way and closes each as FINISHED, FAILED or KILLED.

    Args:
        live: the page; None where nothing is shown of the work.
        entries: what is shown of a cell, by its digest.
        units: of a task, as the display counts them.
        folder: the storage's, where logs of attempts lie.
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
        """Digest → the cells under way."""
        self.shown: set[str] = set()
        """Digests of the cells whose runs this driver has begun."""
        self.pending: dict[str, dict[str, str]] = {}
        """Digest → tags that its run gets when it is begun."""
        self.waiting: set[str] = set()
        """Cells that wait for another process. The run of one that has not begun is another's."""
        self.retried: dict[str, list[str]] = {}
        """Task → reasons for which it was begun again."""
        self.finished: set[str] = set()
        """Digests of the cells that ended well."""
        self.failed: dict[str, str] = {}
        """Digest of a cell → reason."""

    # --- the page's own run --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The page's own run is made, or taken up again: called once it is sure that there is room for the tasks.
        TrackingError where the store does not take it."""
        if self.live is not None:
            self.live.open(self.tags)
        self.begun = True
        # The driver has nothing to do until the first worker is up: time to import what its first end will need.
        threading.Thread(target=import_module, args=(FIGURES,), daemon=True).start()

    def close(self, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """The work has ended."""
        if self.begun and self.live is not None:
            self.live.end(status, tags)

    # --- events --------------------------------------------------------------------------------------------------

    def hand(self, task: Task) -> None:
        """A task is handed out. Runs of its cells are begun once it is at work itself: until then another driver may
        be."""
        for cell in task.cells:
            if cell not in self.open:
                self.open[cell] = self.entry_of(cell)
        self._show(task, 0.0, "starting")

    def start(self, task: Task) -> None:
        """A task is at work itself."""
        self._work(task)
        self._show(task, 0.0, "starting")

    def wait(self, task: Task, event: Waiting) -> None:
        """A task waits for another process."""
        text = f"waiting for {event.holder}"
        if task.id not in self.waiting:
            self.display.line(f"{task.label}: {text}")
        self.waiting |= {task.id, *task.cells}
        self._show(task, TRAINING_SHARE if {*task.cells} & self.shown else 0.0, text)

    def progress(self, task: Task, event: Progress) -> None:
        """A task is at some share of a phase."""
        self._work(task)
        if isinstance(task, Train):
            share = event.share * TRAINING_SHARE
            if event.phase != "training":
                share = TRAINING_SHARE + (1 - TRAINING_SHARE) * event.share
            self._show(task, share, event.phase)
        else:
            self._show(task, event.share, event.phase)

    def curve_point(self, task: Task, event: CurvePoint) -> None:
        """A training has a new point of its curve."""
        point = event.record
        self._work(task)
        if self.live is not None:
            for cell in task.cells:
                self.live.log(cell, point_of(point))
        images = task.experiment.training.images if isinstance(task, Train) else point.images_seen
        note = f"loss {point.loss:.4f} · {point.images_per_second:.0f} images/s"
        self._show(task, TRAINING_SHARE * point.images_seen / images, note)

    def warn(self, task: Task, event: Warned) -> None:
        """A task has something to say that a person should know."""
        self.display.line(f"{task.label}: warning: {event.message}")
        for cell in task.cells:
            self._tag(cell, {Tags.WARNING: event.message})

    def warn_of(self, cell: str, label: str, message: str) -> None:
        """Something that a person should know of a cell."""
        self.display.line(f"{label}: warning: {message}")
        self._tag(cell, {Tags.WARNING: message})

    def retry(self, task: Task, event: Failed, attempt: int, attempts: int) -> None:
        """An attempt has failed and there is another: number `attempt`, from 1, of at most `attempts`."""
        reasons = self.retried.setdefault(task.id, [])
        reasons.append(event.failure.reason)
        goes_on = "goes on at its last checkpoint" if isinstance(task, Train) else "follows"
        self.display.line(f"{task.label}: {event.failure.reason}; attempt {attempt} of {attempts} {goes_on}")
        for cell in task.cells:
            self._tag(cell, {Tags.ATTEMPTS: str(attempt), Tags.RETRIED: "; ".join(reasons)})

    def fail(self, task: Task, event: Failed) -> None:
        """A task has failed for good: its cells are FAILED with its reason; the next call tries them again."""
        reason, message = event.failure
        for cell in task.cells:
            self.fail_cell(cell, reason, message, log=event.log)
        text = f"FAILED ({reason}): {message[:MOST_ERROR]}"
        if event.log is not None:
            text += f" (pforce logs {task.id[:12]})" if isinstance(task, Train) else f" (log: {event.log})"
        self.display.end(task.label, text, units=self.units(task))

    def kill(self, task: Task, reason: str) -> None:
        """A task was stopped: the same command takes it up where it was."""
        for cell in task.cells:
            self.kill_cell(cell, reason)
        self.display.end(task.label, None, units=0)

    # --- cells ---------------------------------------------------------------------------------------------------

    def finish(self, cell: str, label: str, note: str, environment: Mapping[str, str] | None = None) -> None:
        """All parts of a cell are there."""
        self._works(cell)
        self._close(cell, "FINISHED", environment or {})
        self.finished.add(cell)
        self.display.end(label, note)

    def fail_cell(self, cell: str, reason: str, message: str, *, log: str | None = None) -> None:
        """A cell is FAILED. The run of one that another driver is at stays that one's."""
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
        """A cell was stopped from outside: KILLED. The run of one that another driver is at goes on."""
        self.open.pop(cell, None)
        if cell in self.shown and self.live is not None:
            self.live.tag(cell, {Tags.REASON: reason})
            self.live.close(cell, "KILLED")

    def kill_all(self, reason: str) -> None:
        """`kill_cell` for every cell under way."""
        for cell in list(self.open):
            self.kill_cell(cell, reason)

    def _work(self, task: Task) -> None:
        self.waiting.discard(task.id)
        for cell in task.cells:
            self._works(cell)

    def _works(self, cell: str) -> None:
        """A cell is being worked at by this driver: its run is begun, or taken up again."""
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
        """Tags of a cell's run, now or once it is made."""
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
        """A task is done that is one of many, and needs no line."""
        self.display.end(task.label, None, units=self.units(task))

    def _show(self, task: Task, share: float, note: str) -> None:
        """Show a task's bar; ranges of images, of which there may be hundreds, have none."""
        if isinstance(task, Train | MeasureImages) or (isinstance(task, Measure) and task.what == "all"):
            self.display.update(task.label, share, note, units=self.units(task))
