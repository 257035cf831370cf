"""Reports of a running attempt: events to the driver, whose answers are acted on, and lines of its log."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pforce.parallel import Workers
from pforce.records.lease import Holder
from pforce.training import Answer, Callback, Record, Stopped, TrainState
from pforce.trial.attempts import AttemptLog
from pforce.trial.task import CurvePoint, Event, Handed, Progress, Snapshot, Started, Waiting, Warned
from pforce.trial.watch import Phase

REPORT_SECONDS = 2.0
"""Seconds between reports of progress, each of which gets an answer."""
Report = Callable[[Event], Answer]
Newest = Callable[[], Answer]


def no_news() -> Answer:
    """The answer where nobody has anything to say."""
    return Answer.GO_ON


class StoppedAlone(Stopped):
    """The first worker was asked to stop during work that it does alone; the others do not know."""


class Telling:
    """Reports of an attempt to the driver and in its log. Answers are acted on at once while measuring, and by the
    training loop at the end of a step."""

    def __init__(
        self, handed: Handed, report: Report, log: AttemptLog, workers: Workers, newest: Newest = no_news
    ) -> None:  # fmt: skip
        self.task, self.attempt, self.report, self.log = handed.task.id, handed.attempt, report, log
        self.first = workers.first
        self.newest = newest
        self.answer = Answer.GO_ON
        """The last answer, until the training loop takes it."""
        self.last = 0.0
        self.phase: Phase | None = None

    def say(self, event: Event) -> None:
        """Report an event; the other workers of a group report warnings only."""
        if self.first or isinstance(event, Warned):
            answer = self.report(event)
            self.answer = max(self.answer, answer)

    def begins(self) -> None:
        """See `Watch.begins`."""
        self.log.line("at work")
        self.say(Started(self.task, self.attempt))

    def waits(self, holder: Holder | None) -> None:
        """See `Watch.waits`. All workers of a group raise Stopped at once."""
        self.say(Waiting(self.task, self.attempt, str(holder or "another process")))
        if self.answer is Answer.CHECKPOINT_AND_STOP:
            raise Stopped("stopped while waiting")

    def progress(self, phase: Phase, share: float) -> None:
        """See `Watch.progress`."""
        if phase != self.phase:
            self.phase = phase
            self.log.line(phase)
        elif time.monotonic() - self.last < REPORT_SECONDS:
            return
        self.last = time.monotonic()
        self.say(Progress(self.task, self.attempt, phase, share))
        if self.answer is Answer.CHECKPOINT_AND_STOP:
            raise StoppedAlone(f"stopped during: {phase}")

    def snapshot(self, images_seen: int) -> None:
        """See `Watch.snapshot`."""
        self.log.line(f"snapshot at {images_seen:,} images seen")
        self.say(Snapshot(self.task, self.attempt, images_seen))

    def warn(self, message: str) -> None:
        """Report a warning."""
        self.log.open()
        self.log.line(f"warning: {message}")
        self.say(Warned(self.task, self.attempt, message))


class Reports(Callback):
    """Reports a training's curve and, every REPORT_SECONDS, its progress; passes answers to the loop."""

    def __init__(self, telling: Telling) -> None:
        self.telling = telling

    def on_record(self, state: TrainState, record: Record) -> None:
        t = self.telling
        t.log.line(
            f"{record.images_seen:,} images seen, loss {record.loss:.4f}, gradient norm {record.gradient_norm:.3g}, "
            f"{record.images_per_second:.0f} images/s"
        )
        t.last = time.monotonic()
        t.say(CurvePoint(t.task, t.attempt, record))

    def on_step(self, state: TrainState) -> None:
        t = self.telling
        if time.monotonic() - t.last >= REPORT_SECONDS:
            t.last = time.monotonic()
            t.say(Progress(t.task, t.attempt, "training", state.images_seen / state.spec.training.images))
        state.answer, t.answer = max(state.answer, t.answer, t.newest()), Answer.GO_ON

    def on_checkpoint(self, state: TrainState) -> None:
        self.telling.log.line(f"checkpoint at {state.images_seen:,} images seen, as asked")


@contextmanager
def warnings_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Report pforce's warnings (of a damaged checkpoint or sample) to the driver, as nobody sees a worker's own
    output."""
    show = warnings.showwarning

    def told(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if issubclass(category, UserWarning) and "pforce" in filename:
            tell(str(message))
        else:
            show(message, category, filename, lineno, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = told  # type: ignore[assignment]  # the documented way to redirect warnings
        yield
