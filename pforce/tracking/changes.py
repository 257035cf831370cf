"""Changes of running trials, kept until the store shows them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from pforce.records.status import RUNNING, Status
from pforce.tracking.checks import TrackingError, transient, why
from pforce.tracking.page import Page, Run
from pforce.tracking.view import Point, View

T = TypeVar("T")
FLUSH_SECONDS = 60.0
SUM_SECONDS, SUM_SHARE = 10.0, 100.0
"""Least seconds between two updates of the sweep's own run, and least multiple of the time that one took."""


def flush_seconds() -> float:
    """Seconds that a sweep's end waits for an unreachable store: PFORCE_FLUSH_SECONDS, or 60. TrackingError for a wrong
    value."""
    text = os.environ.get("PFORCE_FLUSH_SECONDS", str(FLUSH_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise TrackingError(f"PFORCE_FLUSH_SECONDS = {text}: must be a number of seconds, 0 or more")
    return seconds


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass
class Trial:
    """The reported state of a trial, or of the sweep itself."""

    name: str
    tags: dict[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    status: Status = RUNNING
    started: int = field(default_factory=now)
    ended: int | None = None
    past: Callable[[], Sequence[Point]] | None = None
    """Function that returns the curve of earlier training; None once it has been called."""
    points: list[Point] = field(default_factory=list)
    whole: Callable[[], View | None] | None = None
    """Function that returns the view of a finished trial from its records."""
    files: Sequence[Path] = ()
    """Logs of the last attempt of a failed trial."""
    changes: int = 1
    """Number of changes; `shown` is the number of those that the store shows."""
    shown: int = 0
    run: Run | None = None
    doubtful: bool = False
    """Whether the creation of its run was not answered, so that there may be a second run."""
    failures: int = 0
    """Number of consecutive failures to show it although the store answers."""
    refused: bool = False


def looked_up(say: Callable[[str], None], trial: Trial, look: Callable[[], T], what: str) -> T | None:
    """The result of `look` in the storage; None, with a warning, where the storage does not answer or is damaged."""
    try:
        return look()
    except Exception as error:  # it must not end the sweep
        say(f"warning: {trial.name}: its {what} could not be read for its run: {error}")
        return None


class GoneError(Exception):
    """A run, or the page, is no longer in the store."""


class Changing:
    """Context in which a trial is changed under its lock.

    Args:
        changed: condition that is locked meanwhile and notified afterwards.
    """

    def __init__(self, changed: threading.Condition, trial: Trial) -> None:
        self.changed, self.trial = changed, trial

    def __enter__(self) -> Trial:
        self.changed.acquire()
        return self.trial

    def __exit__(self, *error: object) -> None:
        self.trial.changes += 1
        self.changed.notify_all()
        self.changed.release()


class Sums:
    """Times at which the sweep's own run is brought up to date while trials end.

    Args:
        own: function from the status of that run to its view; None where it shows no sums.
    """

    def __init__(self, own: Callable[[Status], View | None] | None) -> None:
        self.own = own
        self.ended = 0
        """Number of trials that have ended."""
        self.shown = 0
        """Number of trials that had ended when it was last brought up to date."""
        self.next = 0.0
        """Earliest time of the next update, on the monotonic clock."""

    def at_end(self, status: Status) -> Callable[[], View | None] | None:
        """A function that returns the view at the sweep's end."""
        return None if self.own is None else partial(self.own, status)

    @contextmanager
    def due(self) -> Iterator[Callable[[], View | None] | None]:
        """A function that returns the view while the sweep runs, or None where it is too early for it. The block is the
        update, which takes at most a hundredth of the time, since a training may share this process."""
        started, ended = time.monotonic(), self.ended
        if self.own is None or ended == self.shown or started < self.next:
            yield None
            return
        try:
            yield partial(self.own, RUNNING)
        finally:
            self.shown, done = ended, time.monotonic()
            self.next = done + max(SUM_SECONDS, SUM_SHARE * (done - started))

    def bring(self, page: Page, run: Run, view: View, say: Callable[[str], None]) -> None:
        """Bring the run of a running sweep up to date, unless another driver has ended it. Raises the error of a store
        that is away. A run that is refused now is tried again at the end, unless a person has deleted it."""
        try:
            run.read = False
            page.read(run)
            if run.status == RUNNING:
                page.bring(run, view)
        except Exception as error:  # every kind of store raises its own
            if transient(error) and not page.mirror.answers():
                raise
            if run.filing or transient(error):
                page.mirror.refuse(run, view.name, error, say)
                return
            self.own = None
            say(f"warning: the table of {view.name} is not shown while it runs: {why(error)}")
