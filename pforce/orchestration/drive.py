"""The one loop that runs everything: it hands out tasks, hears what their workers say, tries again what failed, and
stops at a limit or a signal. Where tasks come from a source says, where they run an executor, what is shown of them
the recorder."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from pforce.base.console import stop_gently
from pforce.base.errors import InputError
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
    Started,
    Task,
    Train,
    Waiting,
    Warned,
)

GRACE_SECONDS = 20.0
"""How long trainings may take to leave a checkpoint after a signal."""
LIMIT_GRACE_SECONDS = 60.0
"""And at the time limit."""
SILENCE_SECONDS = 600.0
"""A task that has said nothing for so long is named, once."""
TIME_LIMIT = "time limit"


class DiskFull(RuntimeError):
    """A task could not write its files for want of space."""


class WorkFailed(RuntimeError):
    """A task of which all else depends has failed for good."""

    def __init__(self, event: Failed) -> None:
        self.failure = event.failure
        log = f" (log: {event.log})" if event.log else ""
        super().__init__(f"{event.failure.reason}: {event.failure.message}{log}")


def error_of(event: Failed) -> Exception:
    """What a failure on which all else depends is raised as: a mistake of the user's is one wherever it is found."""
    return InputError(event.failure.message) if event.failure.reason == WRONG_INPUT else WorkFailed(event)


class _Over(BaseException):
    """What is under way is waited for no longer. No Exception: a trial in this process must not take it for its own."""


class Source(ABC):
    """Where tasks come from, and what becomes of their results."""

    @abstractmethod
    def next(self) -> Task | Idle:
        """The next task, or why there is none. Asked again after a Wait."""

    @abstractmethod
    def done(self, task: Task, event: Done) -> None:
        """A task is done. Called before the next one is asked for."""

    @abstractmethod
    def failed(self, task: Task, event: Failed) -> None:
        """A task has failed, and is not tried again."""


@dataclass(frozen=True)
class RetryPolicy:
    """Which failures are worth another attempt."""

    retries: int = 2
    """Further attempts."""

    def again(self, failure: Failure, attempt: int) -> bool:
        """Whether to try again after attempt number `attempt`, from 1."""
        return not failure.final and attempt <= self.retries


class Exit(NamedTuple):
    """How a run has ended."""

    stopped: str | None = None
    """What stopped it; None where all has been tried."""


class _Drive:
    def __init__(self, source: Source, recorder: Recorder, retry: RetryPolicy, deadline: float | None) -> None:
        self.source, self.recorder, self.retry, self.deadline = source, recorder, retry, deadline
        self.attempts: Counter[str] = Counter()
        self.under_way: dict[str, Handed] = {}
        self.heard: dict[str, float] = {}
        """Task → when its worker last said something; none where it has not yet."""
        self.silent: set[str] = set()
        self.training: set[str] = set()
        """Tasks that are training: what else is under way keeps what it has, whenever it is stopped."""
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
            return Answer.CHECKPOINT_AND_STOP  # its task was given to another, or has ended
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
                self.training |= {task.id} if isinstance(task, Train) else set()
                self.recorder.start(task)
            case Waiting():
                self.recorder.wait(task, event)
            case Progress():
                if event.phase != "training":
                    self.training.discard(task.id)
                self.recorder.progress(task, event)
            case CurvePoint():
                self.training.add(task.id)
                self.recorder.curve_point(task, event)
            case Warned():
                self.recorder.warn(task, event)
            case _:
                assert_never(event)
        return Answer.GO_ON if self.stopping is None else Answer.CHECKPOINT_AND_STOP

    def _end(self, task: Task) -> None:
        del self.under_way[task.id]
        self.heard.pop(task.id, None)
        self.silent.discard(task.id)
        self.training.discard(task.id)

    def _failed(self, handed: Handed, event: Failed) -> None:
        task, failure = handed.task, event.failure
        if failure.reason == DISK_FULL:  # every other task would meet the same: all stop, and go on when there is room
            self.under_way[task.id] = handed
            raise DiskFull(f"{task.label}: {failure.message}")
        if failure.reason == STOPPED or self.stopping is not None:
            self.recorder.kill(task, self.stopping or STOPPED)
        elif self.retry.again(failure, handed.attempt):
            self.recorder.retry(task, event, handed.attempt + 1, self.retry.retries + 1)
            self.again.append(task)
        else:
            self.recorder.fail(task, event)
            self.source.failed(task, event)

    def stop(self, why: str, seconds: float) -> None:
        """No more tasks; those under way stop at their next report."""
        self.stopping, self.until = why, time.monotonic() + seconds

    def tick(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now > self.deadline and self.stopping is None:
            self.stop(TIME_LIMIT, LIMIT_GRACE_SECONDS)
        if self.stopping is not None and (now > self.until or not self.training):
            raise _Over  # what else is under way has nothing to lose
        for task_id, handed in self.under_way.items():
            since = self.heard.get(task_id, self.handed_at[task_id])
            if now - since > SILENCE_SECONDS and task_id not in self.silent:
                self.silent.add(task_id)
                self.recorder.display.line(
                    f"{handed.task.label}: no word from its worker for {SILENCE_SECONDS / 60:.0f} minutes; it is "
                    "waited for. Ctrl-C stops, and the same command goes on at the last checkpoint"
                )


def drive(
    executor: Executor,
    source: Source,
    recorder: Recorder,
    *,
    retry: RetryPolicy = RetryPolicy(),  # a frozen value
    deadline: float | None = None,
) -> Exit:
    """Run all tasks of a source. KeyboardInterrupt after a signal, once trainings have left a checkpoint; DiskFull.

    Args:
        deadline: on the clock of `time.monotonic`, after which trainings leave a checkpoint and stop.
    """
    loop = _Drive(source, recorder, retry, deadline)
    with stop_gently(GRACE_SECONDS, lambda: bool(loop.training)) as request:

        def tick() -> None:
            if request.by is not None and loop.stopping is None:
                loop.stop(STOPPED, GRACE_SECONDS)
                recorder.display.line(
                    "Stopping: trainings leave a checkpoint first. Once more Ctrl-C ends at once, without one."
                )
            loop.tick()

        with suppress(_Over):
            executor.run(loop.hand, loop.listen, tick)
        if request.by is not None:
            raise KeyboardInterrupt(request.by)
    return Exit(loop.stopping)
