"""The run of a sampling job: draws its missing images, on one or many workers, into the storage's drawings."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from pforce.base.console import stop_on_signals
from pforce.executors.executor import Workforce
from pforce.orchestration.display import Display
from pforce.orchestration.drive import Source, drive, error_of
from pforce.orchestration.options import SCRATCH
from pforce.orchestration.recorder import Entry, Recorder
from pforce.storage import Storage
from pforce.trial.draw import Span
from pforce.trial.jobs import Job, missing
from pforce.trial.task import Done, Draw, Failed, Idle, Spent, Task

HERE = Workforce()


class Ranges(Source):
    """The source of a job's missing images, by groups of passes."""

    def __init__(self, job: Job, groups: list[list[Span]], recorder: Recorder) -> None:
        self.job, self.recorder = job, recorder
        self.waiting = iter(groups)
        self.spent: list[tuple[Spent, float]] = []

    def next(self) -> Task | Idle:
        group = next(self.waiting, None)
        if group is None:
            return Idle.END
        span = f"images {group[0].first}-{group[-1].end}"
        return Draw(span, span, self.job, tuple(group))

    def done(self, task: Task, event: Done) -> None:
        self.spent.append((event.spent, event.seconds))
        self.recorder.advance(task)

    def failed(self, task: Task, event: Failed) -> None:
        raise error_of(event)


def images_of(group: list[Span], job: Job) -> int:
    """Number of images of a group of passes within the job's count, beyond which the last pass may reach."""
    return sum(max(0, min(span.end, job.count) - span.first) for span in group)


def run_job(job: Job, console: Console, workforce: Workforce = HERE) -> Spent:
    """Draw the missing images of a job. Raises KeyboardInterrupt on SIGINT and SIGTERM, and WorkFailed; finished blocks
    are kept.

    The returned seconds are for one worker: the median over groups of passes, times the images.
    """
    groups = missing(job)
    if not groups:
        return Spent()
    absent = sum(images_of(group, job) for group in groups)
    display = Display(console, "sampling", job.count, job.count - absent, "images")
    recorder = Recorder(
        None, display, lambda cell: Entry(cell, cell),
        units=lambda task: images_of([*task.group], job) if isinstance(task, Draw) else 1,
    )  # fmt: skip
    source = Ranges(job, groups, recorder)
    at = workforce.make("sample", Storage.open(job.storage).root / SCRATCH, most=len(groups), say=display.line)
    with stop_on_signals(), at, display:
        drive(at, source, recorder)
    last, _ = source.spent[-1]
    median = float(np.median([spent.sampling_seconds / spent.images for spent, _ in source.spent]))
    return last._replace(images=absent, sampling_seconds=median * absent)
