"""Runs a sampling job: the batches that are missing, on one or many workers, into the job's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pforce.generation import Drawer, Drawn, Job, claim, missing, save_batch
from pforce.orchestration.display import LINE_EVERY_SECONDS
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.pool import Pool, drain, make_pool


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
    folder: Path,
    console: Console,
    *,
    workers: int = 1,
    address: str | None = None,
    make: Callable[..., Callable[[int], Drawn]] = Drawer,
) -> Spent:
    """Draw what is missing of a job. KeyboardInterrupt on SIGINT and SIGTERM; finished batches are kept.

    Args:
        workers: 1 draws in this process, on all cores or the first GPU; more are Ray actors.
        address: of a Ray cluster; by default RAY_ADDRESS, else one is started here.
        make: what draws a batch, made of the job and a device.
    """
    claim(folder, job)
    todo = missing(folder, job)
    absent = sum(min(job.batch, job.count - number * job.batch) for number in todo)
    if not todo:
        return Spent(0, 0, 0, 0.0, "", 0.0)
    started = time.perf_counter()
    display = _Display(console, job.count, job.count - absent)
    with stop_on_signals():
        pool: Pool[int, Drawn] = make_pool(min(workers, len(todo)), address, make, job)
        # Once more: starting Ray puts a handler of its own over SIGTERM.
        with stop_on_signals(restore=False), pool:
            if console.is_terminal:
                display.progress.start()
            try:
                drawn, seconds = _draw(pool, todo, job, folder, display)
            finally:
                if console.is_terminal:  # elsewhere it would print an empty line
                    display.progress.stop()
    return Spent(
        absent,
        drawn.num_function_evaluations,
        drawn.forward_passes,
        float(np.median(seconds)) / job.batch,
        drawn.device,
        time.perf_counter() - started,
    )


def _draw(
    pool: Pool[int, Drawn], todo: list[int], job: Job, folder: Path, display: _Display
) -> tuple[Drawn, list[float]]:
    """All of `todo`; the last batch that came, and the seconds of each."""
    waiting = iter(todo)
    seconds = []
    for _, drawn in drain(pool, lambda: next(waiting, None)):
        save_batch(folder, job, drawn)
        seconds.append(drawn.seconds)
        display.advance(min(job.batch, job.count - drawn.number * job.batch))
    return drawn, seconds
