"""Functions for sweep scripts: dry run or run, then the table, its files, and how to open MLflow."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pforce.base.console import DONE, SOME_FAILED, STOPPED, duration, make_console
from pforce.base.errors import ConfigError
from pforce.base.words import counted
from pforce.config import with_fields
from pforce.executors.executor import make
from pforce.orchestration.axes import changes_of
from pforce.orchestration.doctor.cluster import check_cluster
from pforce.orchestration.dry_run import print_dry_run
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import Summarize, execute
from pforce.orchestration.notify import notify
from pforce.orchestration.options import WORKER, Options, setup_of
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.search import begin_search
from pforce.orchestration.search_goal import SearchSettings
from pforce.orchestration.search_report import search_report, search_summary
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import (
    ALL_ROWS,
    Comparison,
    compared_rows,
    print_report,
    prioritized,
    sweep_summary,
)
from pforce.storage import default_storage
from pforce.tracking import TrackingError
from pforce.training import Callback

QUICK = {
    "training.images": 6_400, "evaluation.images": 256, "evaluation.held_out_images": 256,
    "evaluation.label_images": 256, "evaluation.reference_images": 256,
}  # fmt: skip
"""Settings of a training sweep's quick preset: it takes minutes and is too short to rank anything."""
MOST_LISTED = 12
"""Most rows that an error lists."""


def run_sweep(
    sweep: Sweep,
    options: Options,
    *,
    dry_run: bool = False,
    executor: str | None = None,
    callbacks: Sequence[Callback] = (),
    report: Callable[[Plan, Console], None] | None = None,
    summarize: Summarize | None = None,
    comparison: Comparison = ALL_ROWS,
    priority: Sequence[str] = (),
    add: bool = False,
    search: SearchSettings | None = None,
) -> int:
    """Plan a sweep, run its missing cells, print and write the table. Returns the exit code.

    Ray is imported only if something has to run on it. ConfigError where the comparison names rows that the table will
    not have.

    Args:
        executor: executor where the options name none; by default tune, or groups for several workers.
        callbacks: callbacks of trainings that run in this process.
        report: function that reports the results; by default `print_report`.
        summarize: function that gives MLflow's summary of the sweep; by default `sweep_summary`.
        comparison: rows that the table's claims compare.
        priority: rows that run before all others, as the comparison names them.
        add: only write the cells down; a driver of the sweep that runs takes them up.
        search: search that chooses the points; the sweep's axes are its space.
    """
    console, started = make_console(), time.perf_counter()
    planned: Plan | None = None
    code: int | None = None
    try:
        name = _executor_of(sweep, options, executor, search)
        planned = plan(_with_absolute_paths(sweep if search is None else replace(sweep, points=())), options, console)
        searching = None if search is None else begin_search(planned, search, dry_run=dry_run)
        compared_rows(planned, comparison)  # errors in it are reported before anything starts
        planned.first = prioritized(planned, priority)
        for note in planned.notes:
            console.print(f"note: {note}", soft_wrap=True)
        if dry_run:
            print_dry_run(planned, console)
            return DONE
        if add:
            return _written_down(planned, console)
        usual = partial(print_report, comparison=comparison), partial(sweep_summary, comparison=comparison)
        if searching is not None:
            usual = partial(search_report, search=searching), partial(search_summary, search=searching)
        code = _carried_out(planned, console, name, callbacks=callbacks, report=report or usual[0],
                            summarize=summarize or usual[1])  # fmt: skip
    finally:
        if options.notify is not None and not dry_run:
            problem = _notify(options.notify, sweep.name, planned, code, time.perf_counter() - started)
            if problem is not None:
                console.print(f"warning: {problem}", soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all")
    return code


def _carried_out(
    planned: Plan, console: Console, name: str, *, callbacks: Sequence[Callback],
    report: Callable[[Plan, Console], None], summarize: Summarize,
) -> int:  # fmt: skip
    """Run the missing cells of a plan, and print and write the table. Returns the exit code."""
    sweep, options = planned.sweep, planned.options
    keep_sweep(planned)
    diverged = f", {len(planned.diverged)} diverged before (--again diverged runs them)" if planned.diverged else ""
    about = (
        f"{sweep.name}: {counted(len(planned.cells), 'cell')}, {len(planned.work)} distinct, "
        f"{len(planned.done)} finished before{diverged}"
    )
    if planned.work:  # a search may have none yet
        console.print(about)
    # Ray would wait for minutes for a cluster that does not answer.
    if planned.left and make(name, setup_of(options, sweep.name, tasks=1)).on_cluster:
        check_cluster(options.ray_address or os.environ.get("RAY_ADDRESS"))
    code = execute(planned, console, name, callbacks=callbacks, summarize=summarize)
    try:
        if name != WORKER or _is_last(planned, console):
            report(planned, console)
    except (TrackingError, OSError) as error:  # the store is still unreachable, or the disk full
        if code != STOPPED:
            raise
        console.print(f"No table: {error}", soft_wrap=True)
    for line in failures(planned):
        console.print(line, soft_wrap=True)
    return code


def _executor_of(sweep: Sweep, options: Options, usual: str | None, search: SearchSettings | None) -> str:
    """Name of the executor. ConfigError where it cannot run the sweep, which is said before anything else."""
    chosen = options.executor or usual
    if chosen == WORKER:
        _check_worker(options, search)
    if chosen is not None:
        make(chosen, setup_of(options, sweep.name, tasks=1))
    return chosen or ("groups" if options.workers > 1 else "tune")


def _check_worker(options: Options, search: SearchSettings | None) -> None:
    """Raise ConfigError where one process among many cannot run such a sweep."""
    if search is not None:
        raise ConfigError(
            f"--executor {WORKER}: takes what a grid still lacks; the trials of a search (--search {search.method}) "
            "are chosen by its one driver: leave --executor out"
        )
    if options.evaluation_workers is not None:
        raise ConfigError(
            f"--evaluation-workers {options.evaluation_workers}: left out with --executor {WORKER}, where each process "
            "measures what it has trained"
        )


def _is_last(planned: Plan, console: Console) -> bool:
    """Whether all cells are there, so that this worker writes the table; else say how many are."""
    planned.look()
    if planned.missing:
        console.print(
            f"{len(planned.done)} of {counted(len(planned.work), 'cell')} finished; the worker that finishes the last "
            "one writes the table"
        )
    return not planned.missing


STATES = {DONE: "finished", SOME_FAILED: "failed", STOPPED: "stopped"}


def _notify(url: str, name: str, planned: Plan | None, code: int | None, seconds: float) -> str | None:
    """Tell an address how a sweep has ended. Returns the reason where that fails."""
    state = STATES.get(-1 if code is None else code, "failed")
    if planned is not None:
        planned.look()
    cells, done = (len(planned.work), len(planned.done)) if planned else (0, 0)
    failed = list(planned.failed.items())[:MOST_LISTED] if planned else []
    labels = {item.fingerprint: item.label for item in planned.work} if planned else {}
    return notify(url, {
        "text": f"pforce: {name} {state}: {done} of {counted(cells, 'cell')} finished in {duration(seconds)}",
        "sweep": name, "state": state, "exit_code": code, "cells": cells, "finished": done,
        "failed": {labels[cell]: reason for cell, reason in failed}, "seconds": round(seconds),
        "storage": str(planned.options.place) if planned else None,
    })  # fmt: skip


def failures(planned: Plan) -> list[str]:
    """Lines on the cells that failed in this call, with the command that shows the attempt's log."""
    labels = {item.fingerprint: item.label for item in planned.work}
    given = str(planned.options.storage)
    where = "" if given == default_storage() else f" --storage {shlex.quote(given)}"
    lines = [f"FAILED ({reason}): {labels[cell]}: pforce logs {cell[:12]}{where}" for cell, reason
             in planned.failed.items()]  # fmt: skip
    more = [f"and {len(lines) - MOST_LISTED} more"] if len(lines) > MOST_LISTED else []
    return [*lines[:MOST_LISTED], *more]


def _with_absolute_paths(sweep: Sweep) -> Sweep:
    """The sweep with absolute paths of the files that the evaluation reads, as workers run in another directory."""
    evaluation = sweep.base.evaluation
    paths = {"evaluation.detector_weights": evaluation.detector_weights}
    if evaluation.reference.endswith(".npz"):
        paths["evaluation.reference"] = evaluation.reference
    absolute: dict[str, Any] = {
        name: str(Path(path).absolute()) for name, path in paths.items() if path is not None
    }  # fmt: skip
    if evaluation.further:
        absolute["evaluation.further_detectors"] = tuple(
            name if weights is None else f"{name}={Path(weights).absolute()}" for name, weights in evaluation.further
        )
    return replace(sweep, base=with_fields(sweep.base, absolute)) if absolute else sweep


def _written_down(planned: Plan, console: Console) -> int:
    """Write a sweep's cells down without running them."""
    keep_sweep(planned)
    console.print(
        f"{planned.sweep.name}: {counted(len(planned.missing), 'unfinished cell')} written down; a driver of "
        "this sweep that runs takes them up within seconds; without one, the same command without --add runs them",
        soft_wrap=True,
    )  # fmt: skip
    return DONE


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """FIELD=VALUE arguments as changes of an experiment's fields; a value with commas is a tuple."""
    axes = [parse_axis(text) for text in texts]
    if any(axis.path == "seed" for axis in axes):
        raise ConfigError("seed: the seeds of a sweep are set with --seeds")
    if ranges := [axis for axis in axes if axis.range is not None or axis.when is not None]:
        raise ConfigError(f"--set {ranges[0].path}: is one value, no range and no condition")
    settings: dict[str, Any] = {}
    for axis in axes:  # of several values of a field the last one counts, as on most command lines
        settings |= changes_of(axis.path, axis.values[0] if len(axis.values) == 1 else axis.values)
    return settings
