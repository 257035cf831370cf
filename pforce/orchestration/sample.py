"""Runs a sampling job: the passes that are missing, on one or many workers, into the storage's drawings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pforce.orchestration.display import LINE_EVERY_SECONDS
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.pool import Pool, drain, make_pool
from pforce.trial.draw import Span
from pforce.trial.jobs import Drawer, Drawn, Job, Keeper, missing


class Spent(NamedTuple):
    """What a call of a job drew, and at what cost."""

    images: int
    """Drawn by this call; the others were there."""
    num_function_evaluations: int
    """NFE an image; 0 where nothing was drawn."""
    forward_passes: int
    seconds_per_image: float
    """Of one worker: the median over batches."""
    device: str
    """What drew them."""
    seconds: float


class _Display:
    """A bar with time left on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.done, self.at_start = console, total, done, done
        self.started = self.last_line = time.monotonic()
        self.progress = Progress(
            TextColumn("sampling"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self.task = self.progress.add_task("", total=total, completed=done)

    def advance(self, images: int) -> None:
        self.done += images
        self.progress.update(self.task, completed=self.done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = now
            left = (now - self.started) / (self.done - self.at_start) * (self.total - self.done)
            self.console.print(f"[{self.done:,}/{self.total:,} images, about {left:.0f} s left]", highlight=False,
                               markup=False)  # fmt: skip


def run_job(
    job: Job,
    console: Console,
    *,
    workers: int = 1,
    address: str | None = None,
    make: Callable[..., Callable[[Span], Drawn]] = Drawer,
) -> Spent:
    """Draw what is missing of a job. KeyboardInterrupt on SIGINT and SIGTERM; finished passes are kept.

    Args:
        workers: 1 draws in this process, on all cores or the first GPU; more are Ray actors.
        address: of a Ray cluster; by default RAY_ADDRESS, else one is started here.
        make: what draws a pass, made of the job and a device.
    """
    todo, ends = missing(job)
    if not todo:
        return Spent(0, 0, 0, 0.0, "", 0.0)
    absent = sum(_asked(span, job) for span in todo)
    started = time.perf_counter()
    display = _Display(console, job.count, job.count - absent)
    with stop_on_signals():
        pool: Pool[Span, Drawn] = make_pool(min(workers, len(todo)), address, make, job)
        # Once more: starting Ray puts a handler of its own over SIGTERM.
        with stop_on_signals(restore=False), pool:
            if console.is_terminal:
                display.progress.start()
            try:
                drawn, seconds = _draw(pool, todo, job, Keeper(job, ends), display)
            finally:
                if console.is_terminal:  # elsewhere it would print an empty line
                    display.progress.stop()
    return Spent(
        absent,
        drawn.num_function_evaluations,
        drawn.forward_passes,
        float(np.median(seconds)),
        drawn.device,
        time.perf_counter() - started,
    )


def _asked(span: Span, job: Job) -> int:
    """Images of a pass that the job counts: the last pass may reach beyond."""
    return max(0, min(span.end, job.count) - span.first)


def _draw(
    pool: Pool[Span, Drawn], todo: list[Span], job: Job, keeper: Keeper, display: _Display
) -> tuple[Drawn, list[float]]:
    """All of `todo`; the last pass that came, and the seconds per image of each."""
    waiting = iter(todo)
    seconds = []
    for span, drawn in drain(pool, lambda: next(waiting, None)):
        keeper.take(drawn)
        seconds.append(drawn.seconds / (span.end - span.first))
        display.advance(_asked(span, job))
    return drawn, seconds
