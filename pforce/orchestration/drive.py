"""The loop that runs everything: it hands out tasks, receives events, retries failed tasks, and stops at a limit or a
signal. A source provides the tasks, an executor runs them, and the recorder shows them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from pforce.base.console import stop_gently
from pforce.base.errors import InputError
from pforce.base.words import counted
from pforce.executors.executor import Executor
from pforce.orchestration.recorder import Recorder
from pforce.trial.failures import DISK_FULL, WRONG_INPUT, Failure
from pforce.trial.task import (
    STOPPED,
    Answer,
    CurvePoint,
    Done,
    Event,
    Failed,
    Handed,
    Idle,
    Next,
    Progress,
    Snapshot,
    Started,
    Task,
    Train,
    Waiting,
    Warned,
)

GRACE_SECONDS = 20.0
"""Seconds that trainings may take to write a checkpoint after a signal."""
LIMIT_GRACE_SECONDS = 60.0
"""Seconds that trainings may take to write a checkpoint at the time limit."""
SILENCE_SECONDS = 600.0
"""Seconds without an event after which a task is reported, once."""
TIME_LIMIT = "time limit"
NOTICED = "Notice (SIGUSR1) that this machine will be taken: a checkpoint of {} is written now, and the work goes on"


LEFT_ALONE = (
    "The workers ended before all had said that their checkpoint is written ({}): what these lack is trained again "
    "from the checkpoint before it"
)


class DiskFull(RuntimeError):
    """A task could not write its files because the disk is full."""


class WorkFailed(RuntimeError):
    """A task on which everything else depends has failed for good."""

    def __init__(self, event: Failed) -> None:
        self.failure = event.failure
        log = f" (log: {event.log})" if event.log else ""
        super().__init__(f"{event.failure.reason}: {event.failure.message}{log}")


def error_of(event: Failed) -> Exception:
    """The exception for a failure on which everything else depends: InputError for wrong input, else WorkFailed."""
    return InputError(event.failure.message) if event.failure.reason == WRONG_INPUT else WorkFailed(event)


class _Over(BaseException):
    """The loop no longer waits for running tasks. Not an Exception, so that a training in this process does not catch
    it as its own."""


class Source(ABC):
    """The source of tasks, which also takes their results."""

    @abstractmethod
    def next(self) -> Task | Idle:
        """The next task, or the reason why there is none; after WAIT it is called again."""

    @abstractmethod
    def done(self, task: Task, event: Done) -> None:
        """Take the result of a task. Called before the next task is asked for."""

    @abstractmethod
    def failed(self, task: Task, event: Failed) -> None:
        """Take the failure of a task that is not retried."""

    def snapshot(self, task: Task, event: Snapshot) -> None:  # noqa: B027  # most sources need none
        """Take note of a snapshot that a task has left."""

    def gives_back(self, task: Task) -> bool:
        """Whether a task that waits for another process is to be given back, as there is other work to do meanwhile."""
        return False

    def take_back(self, task: Task) -> None:  # noqa: B027  # for sources that give some back
        """Take a task that was given back, because `gives_back` said so."""


@dataclass(frozen=True)
class RetryPolicy:
    """The policy on which failures are retried."""

    retries: int = 2
    """Number of retries."""

    def again(self, failure: Failure, attempt: int) -> bool:
        """Whether to retry after attempt number `attempt`, counted from 1."""
        return not failure.final and attempt <= self.retries


class Exit(NamedTuple):
    """The end of a run."""

    stopped: str | None = None
    """Reason why it was stopped; None where all tasks were tried."""


class _Drive:
    def __init__(
        self, source: Source, recorder: Recorder, retry: RetryPolicy, deadline: float | None,
        push: Callable[[Answer], None] = lambda answer: None,
    ) -> None:  # fmt: skip
        self.source, self.recorder, self.retry, self.deadline, self.push = source, recorder, retry, deadline, push
        self.attempts: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        """Task → attempts that ended because their machine was to be taken, or because another process had begun it."""
        self.given_back: set[str] = set()
        """Tasks that are asked to end because they wait for another process."""
        self.begun: set[str] = set()
        """Running tasks that do work of their own, not only wait."""
        self.under_way: dict[str, Handed] = {}
        self.heard: dict[str, float] = {}
        """Task → time of its last event; no entry before the first."""
        self.silent: set[str] = set()
        self.training: set[str] = set()
        """Tasks that are training. All other running tasks can be stopped at any time without loss."""
        self.again: deque[Task] = deque()
        self.stopping: str | None = None
        self.until = float("inf")
        self.handed_at: dict[str, float] = {}

    def hand(self) -> Next:
        if self.stopping is not None:
            return Idle.END
        task = self.again.popleft() if self.again else self.source.next()
        if isinstance(task, Idle):
            return task
        self.attempts[task.id] += 1
        handed = self.under_way[task.id] = Handed(task, self.attempts[task.id])
        self.handed_at[task.id] = time.monotonic()
        self.recorder.hand(task)
        return handed

    def listen(self, event: Event) -> Answer:
        handed = self.under_way.get(event.task)
        if handed is None or handed.attempt != event.attempt:
            return Answer.CHECKPOINT_AND_STOP  # its task was given to another worker, or has ended
        task = handed.task
        self.heard[task.id] = time.monotonic()
        match event:
            case Done():
                self._end(task)
                self.source.done(task, event)
            case Failed():
                self._end(task)
                self._failed(handed, event)
            case Started():
                self.begun.add(task.id)
                self.training |= {task.id} if isinstance(task, Train) else set()
                self.recorder.start(task)
            case Waiting():
                self._wait(task, event)
            case Progress():
                if event.phase != "training":
                    self.training.discard(task.id)
                self.recorder.progress(task, event)
            case CurvePoint():
                self.training.add(task.id)
                self.recorder.curve_point(task, event)
            case Snapshot():
                self.source.snapshot(task, event)
            case Warned():
                self.recorder.warn(task, event)
            case _:
                assert_never(event)
        goes_on = self.stopping is None and task.id not in self.given_back
        return Answer.GO_ON if goes_on else Answer.CHECKPOINT_AND_STOP

    def _wait(self, task: Task, event: Waiting) -> None:
        """Show that a task waits, or have it given back."""
        if self.stopping is None and task.id not in self.begun and self.source.gives_back(task):
            self.given_back.add(task.id)
        else:
            self.recorder.wait(task, event)

    def _end(self, task: Task) -> None:
        del self.under_way[task.id]
        self.heard.pop(task.id, None)
        for kept in (self.silent, self.training, self.begun):
            kept.discard(task.id)

    def _failed(self, handed: Handed, event: Failed) -> None:
        task, failure = handed.task, event.failure
        given_back = task.id in self.given_back
        self.given_back.discard(task.id)
        if (
            failure.reason == DISK_FULL
        ):  # all other tasks would fail in the same way: stop, to be resumed when there is room
            self.under_way[task.id] = handed
            raise DiskFull(f"{task.label}: {failure.message}")
        if self.stopping is not None:
            self.recorder.kill(task, self.stopping)
        elif given_back and failure.reason == STOPPED:
            self.moved[task.id] += 1
            self.recorder.give_back(task)
            self.source.take_back(task)
        elif failure.reason == STOPPED:  # its node is to be taken, which counts as no failure
            self.moved[task.id] += 1
            self.recorder.move(task)
            self.again.append(task)
        elif self.retry.again(failure, handed.attempt - self.moved[task.id]):
            attempt = handed.attempt - self.moved[task.id] + 1
            self.recorder.retry(task, event, attempt, self.retry.retries + 1)
            self.again.append(task)
        else:
            self.recorder.fail(task, event)
            self.source.failed(task, event)

    def stop(self, why: str, seconds: float) -> None:
        """Hand out no more tasks; running ones stop at their next step or report."""
        self.stopping, self.until = why, time.monotonic() + seconds
        self.push(Answer.CHECKPOINT_AND_STOP)

    def tick(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now > self.deadline and self.stopping is None:
            self.stop(TIME_LIMIT, LIMIT_GRACE_SECONDS)
        if self.stopping is not None and (now > self.until or not self.training):
            raise _Over  # all other running tasks lose nothing
        for task_id, handed in self.under_way.items():
            since = self.heard.get(task_id, self.handed_at[task_id])
            if now - since > SILENCE_SECONDS and task_id not in self.silent:
                self.silent.add(task_id)
                self.recorder.display.line(
                    f"{handed.task.label}: no report from its worker for {SILENCE_SECONDS / 60:.0f} minutes; still "
                    "waiting. Ctrl-C stops, and the same command resumes from the last checkpoint"
                )


def drive(
    executor: Executor,
    source: Source,
    recorder: Recorder,
    *,
    retry: RetryPolicy = RetryPolicy(),  # a frozen value
    deadline: float | None = None,
) -> Exit:
    """Run all tasks of a source. Raises KeyboardInterrupt after a signal, once trainings have written a checkpoint, and
    DiskFull.

    Args:
        deadline: time, on the clock of `time.monotonic`, after which trainings write a checkpoint and stop.
    """
    loop, heeded = _Drive(source, recorder, retry, deadline, executor.push), 0
    with stop_gently(GRACE_SECONDS, lambda: bool(loop.training)) as request:

        def tick() -> None:
            nonlocal heeded
            if request.notices > heeded and loop.stopping is None:
                heeded = request.notices
                executor.push(Answer.CHECKPOINT)
                recorder.display.line(NOTICED.format(counted(len(loop.training), "training")))
            if request.by is not None and loop.stopping is None:
                loop.stop(STOPPED, GRACE_SECONDS)
                recorder.display.line(
                    "Stopping: trainings write a checkpoint first. A second Ctrl-C ends at once, without one."
                )
            loop.tick()

        try:
            with suppress(_Over):
                executor.run(loop.hand, loop.listen, tick)
        except Exception as error:  # a scheduler that ends this process may have ended the cluster's as well
            if request.by is None:
                raise
            recorder.display.line(LEFT_ALONE.format(type(error).__name__))
        if request.by is not None:
            raise KeyboardInterrupt(request.by)
    return Exit(loop.stopping)
