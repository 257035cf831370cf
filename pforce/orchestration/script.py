"""Functions for sweep scripts: dry run or run, then the table, its files, and how to open MLflow."""

from __future__ import annotations

import os
import shlex
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, STOPPED, duration, make_console
from pforce.base.errors import ConfigError, require
from pforce.base.words import counted
from pforce.config import with_fields
from pforce.executors.executor import make
from pforce.orchestration.doctor.cluster import check_cluster
from pforce.orchestration.dry_run import print_dry_run
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.launch import execute
from pforce.orchestration.notify import notify
from pforce.orchestration.options import Options, setup_of
from pforce.orchestration.plan import Plan, plan, sweep_entry
from pforce.orchestration.sweep import Sweep, changes_of, format_value
from pforce.records.parts import cell_parts
from pforce.results import Report, Row
from pforce.results.figures import cell_figure
from pforce.results.statistics import MOST_CLAIMS
from pforce.results.stored import storage_frame
from pforce.results.tables import COLUMNS, Column
from pforce.storage import Storage, StorageError, default_storage
from pforce.storage.identity import identity_of
from pforce.tracking import TrackingError, is_server, mask, runs_frame
from pforce.tracking.view import key_of
from pforce.training import Callback
from pforce.trial.where import with_precision

QUICK = {
    "training.images": 6_400, "evaluation.images": 256, "evaluation.held_out_images": 256,
    "evaluation.label_images": 256, "evaluation.reference_images": 256,
}  # fmt: skip
"""Settings of a training sweep's quick preset: it takes minutes and is too short to rank anything."""
HONEST_IMAGES = 96_000
HONEST_SEEDS = 3
MOST_LISTED = 12
"""Most rows that an error lists."""


@dataclass(frozen=True)
class Comparison:
    """The rows that a table's claims compare."""

    baseline: str | None = None
    """Row of the table that claims compare the others with: its axes, such as m=0.7,sigma=0.6, or its number from 1.
    Default: the row of the experiment itself, else the first."""
    compare: tuple[str, ...] = ()
    """Rows that are compared with the baseline, at most 6, named in the same way. Default: all others, where they are
    at most 6."""

    def __post_init__(self) -> None:
        most = f"at most {MOST_CLAIMS} rows: a correction for more finds nothing at a few seeds"
        require(len(self.compare) <= MOST_CLAIMS, "compare", self.compare, most)


ALL_ROWS = Comparison()


def run_sweep(
    sweep: Sweep,
    options: Options,
    *,
    dry_run: bool = False,
    executor: str | None = None,
    callbacks: Sequence[Callback] = (),
    report: Callable[[Plan, Console], None] | None = None,
    comparison: Comparison = ALL_ROWS,
) -> int:
    """Plan a sweep, run its missing cells, print and write the table. Returns the exit code.

    Ray is imported only if something has to run on it. ConfigError where the comparison names rows that the table will
    not have.

    Args:
        executor: executor where the options name none; by default tune, or groups for several workers.
        callbacks: callbacks of trainings that run in this process.
        report: function that reports the results; by default `print_report`.
        comparison: rows that the table's claims compare.
    """
    console = make_console()
    started = time.perf_counter()
    planned: Plan | None = None
    code: int | None = None
    try:
        chosen = options.executor or executor
        if chosen is not None:  # errors in it are reported before anything else
            make(chosen, setup_of(options, sweep.name, tasks=1))
        name = chosen or ("groups" if options.workers > 1 else "tune")
        planned = plan(_with_absolute_paths(sweep), options, console)
        compared_rows(planned, comparison)  # errors in it are reported before anything starts
        for note in planned.notes:
            console.print(f"note: {note}", soft_wrap=True)
        if dry_run:
            print_dry_run(planned, console)
            return DONE
        code = _carried_out(planned, console, name, callbacks=callbacks, report=report, comparison=comparison)
    finally:
        if options.notify is not None and not dry_run:
            problem = _notify(options.notify, sweep.name, planned, code, time.perf_counter() - started)
            if problem is not None:
                console.print(f"warning: {problem}", soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all")
    return code


def _carried_out(
    planned: Plan, console: Console, name: str, *, callbacks: Sequence[Callback],
    report: Callable[[Plan, Console], None] | None, comparison: Comparison,
) -> int:  # fmt: skip
    """Run the missing cells of a plan, and print and write the table. Returns the exit code."""
    sweep, options = planned.sweep, planned.options
    keep_sweep(planned)
    diverged = f", {len(planned.diverged)} diverged before (--again diverged runs them)" if planned.diverged else ""
    console.print(
        f"{sweep.name}: {counted(len(sweep.cells()), 'cell')}, {len(planned.work)} distinct, "
        f"{len(planned.done)} finished before{diverged}"
    )
    # Ray would wait for minutes for a cluster that does not answer.
    if planned.missing and make(name, setup_of(options, sweep.name, tasks=1)).on_cluster:
        check_cluster(options.ray_address or os.environ.get("RAY_ADDRESS"))
    code = execute(planned, console, name, callbacks=callbacks)
    try:
        if report is None:
            print_report(planned, console, comparison=comparison)
        else:
            report(planned, console)
    except (TrackingError, OSError) as error:  # the store is still unreachable, or the disk full
        if code != STOPPED:
            raise
        console.print(f"No table: {error}", soft_wrap=True)
    for line in failures(planned):
        console.print(line, soft_wrap=True)
    return code


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


def keep_sweep(planned: Plan) -> None:
    """Write the sweep's file, which lists its cells, into the storage."""
    sweep_entry(planned).write(planned.options.place)


def _with_absolute_paths(sweep: Sweep) -> Sweep:
    """The sweep with absolute paths of the files that the evaluation reads, as workers run in another directory."""
    evaluation = sweep.base.evaluation
    paths = {"evaluation.detector_weights": evaluation.detector_weights}
    if evaluation.reference.endswith(".npz"):
        paths["evaluation.reference"] = evaluation.reference
    absolute = {name: str(Path(path).absolute()) for name, path in paths.items() if path is not None}
    return replace(sweep, base=with_fields(sweep.base, absolute)) if absolute else sweep


def table_rows(planned: Plan) -> list[Row]:
    """The rows of a sweep's table: cells without their seed; values with the same distribution share a row."""
    headers = planned.sweep.headers
    rows: dict[tuple[tuple[str, ...], ...], Row] = {}
    for item in planned.work:
        key = tuple(tuple(format_value(value) for _, value in cell.values) for cell in item.cells)
        columns = zip(*key, strict=True)
        labels = {name: ", ".join(dict.fromkeys(column)) for name, column in zip(headers, columns, strict=True)}
        row = rows.setdefault(key, Row(labels, []))
        rows[key] = Row(labels, [*row.fingerprints, item.fingerprint])
    return list(rows.values())


def _find_row(planned: Plan, rows: Sequence[Row], option: str, text: str) -> int:
    """The number, from 0, of the row that a user's text names. ConfigError where it names none or several."""
    paths = [path for axis in planned.sweep.axes for path in axis.paths]
    axes = dict(zip(paths, planned.sweep.axis_headers, strict=True))

    def matches(row: Row, part: str) -> bool:
        name, _, value = (word.strip() for word in part.partition("="))
        header = axes.get(name, name)
        return header in row.labels and _same_value(value, row.labels[header])

    if text.strip().isdecimal():
        found = [int(text) - 1] if 0 < int(text) <= len(rows) else []
    else:
        found = [n for n, row in enumerate(rows) if all(matches(row, part) for part in text.split(","))]
    if len(found) == 1:
        return found[0]
    listed = []
    for number, row in enumerate(rows):
        if number in found or not found:
            values = (f"{name}={value.split(', ')[0]}" for name, value in row.labels.items())
            listed.append(f"{number + 1}: {','.join(values)}")
    rest = f" and {len(listed) - MOST_LISTED} more" if len(listed) > MOST_LISTED else ""
    wrong = f"names {len(found)} rows; name one of" if found else "names no row; the rows are"
    raise ConfigError(f"{option} {text}: {wrong} {'; '.join(listed[:MOST_LISTED])}{rest}")


def _same_value(text: str, label: str) -> bool:
    """Whether a user's value is one of a row's values; 0.70 equals 0.7."""
    values = label.split(", ")
    try:
        return text in values or float(text) in [float(value) for value in values]
    except ValueError:
        return False


def compared_rows(planned: Plan, comparison: Comparison) -> tuple[int, list[int]]:
    """Numbers, from 0, of the baseline's row and of the rows that are compared with it.

    ConfigError for a row that the table will not have; it names those that it will have.
    """
    rows, sweep = table_rows(planned), planned.sweep
    if comparison.baseline is not None:
        baseline = _find_row(planned, rows, "--baseline", comparison.baseline)
    else:
        bases = (with_precision(with_fields(sweep.base, {"seed": seed}), planned.inputs) for seed in sweep.seeds)
        own = {cell_parts(base, planned.inputs).digest for base in bases}
        baseline = next((n for n, row in enumerate(rows) if own & set(row.fingerprints)), 0)
    if not comparison.compare:
        return baseline, [number for number in range(len(rows)) if number != baseline]
    chosen = list(dict.fromkeys(_find_row(planned, rows, "--compare", text) for text in comparison.compare))
    if baseline in chosen:
        name = results.row_names(rows)[baseline]
        raise ConfigError(f"--compare: {name} is the baseline itself; leave it out, or choose another --baseline")
    return baseline, chosen


def _claims(planned: Plan, frame: pd.DataFrame, rows: Sequence[Row], comparison: Comparison) -> list[str]:
    """The claims of the table about its rows, in sentences."""
    baseline, others = compared_rows(planned, comparison)
    metric = results.primary_metric(frame, rows)
    if metric is None or not others:
        return []
    if len(others) > MOST_CLAIMS:
        return [f"none, as {len(rows)} rows are too many to correct for; choose at most {MOST_CLAIMS} with --compare, "
                "and --baseline"]  # fmt: skip
    return results.sentences(results.row_claims(frame, rows, metric, baseline, others))


def print_report(
    planned: Plan, console: Console, columns: Sequence[Column] = COLUMNS, comparison: Comparison = ALL_ROWS
) -> None:
    """Print the table with notes and claims, write it and its figure to files, and print how to open MLflow."""
    sweep, options = planned.sweep, planned.options
    frame, rows = sweep_frame(planned), table_rows(planned)
    notes = [_caveat(sweep), *results.table_notes(frame, rows)]
    report = Report(
        results.cell_table(frame, rows, columns), f"{sweep.name} · {sweep.base.name}", notes,
        _claims(planned, frame, rows, comparison),
    )  # fmt: skip
    report.print(console)
    stem = options.root / sweep.name
    written = report.write(stem)
    cell_figure(report.table, sweep.headers, Path(f"{stem}.png"))
    push_files(options.place, [*(path.name for path in written), f"{sweep.name}.png"], console)
    where = f"{options.place}, and here {stem}" if options.place.remote else stem
    console.print(f"Table and figure: {where}.{{csv,md,tex,html,png}}", soft_wrap=True)
    if planned.tracker is not None:
        print_mlflow(options.uri, console)


def sweep_frame(planned: Plan) -> pd.DataFrame:
    """The finished cells of the storage, and the tracking store's runs of unfinished cells, where it is available."""
    planned.ledger.refresh()
    name = planned.sweep.name
    try:
        stored = storage_frame(planned.options.place, ledger=planned.ledger)
    except StorageError as error:  # the bucket has become unreachable; the tracking store knows the finished cells
        if planned.tracker is None:
            raise
        warnings.warn(f"the table is of the tracking store: {error}", stacklevel=2)
        return runs_frame(planned.tracker, name)
    if planned.tracker is None:
        return stored
    try:
        key = key_of(identity_of(planned.options.place), name)
        return results.with_states(stored, runs_frame(planned.tracker, name, key=key))
    except Exception as error:  # every kind of store raises its own; the table of records is complete without it
        warnings.warn(f"failed and running cells are not shown: {mask(str(error))[:200]}", stacklevel=2)
        return stored


def push_files(storage: Storage, names: Sequence[str], console: Console) -> None:
    """Push files of a report to the bucket, where the storage is one. A failure is only reported, as the sweep itself
    has succeeded."""
    try:
        for name in names:
            storage.push(name)
    except StorageError as error:
        console.print(f"warning: {error}; the next call retries", soft_wrap=True)


def print_mlflow(uri: str, console: Console) -> None:
    """Print how to open MLflow."""
    named = mask(uri)
    where = named if is_server(uri) else f"mlflow ui --backend-store-uri {shlex.quote(named)}"
    console.print(f"Open MLflow: {where}", soft_wrap=True)


def _caveat(sweep: Sweep) -> str:
    cells = [cell.experiment for cell in sweep.cells()]

    def told(values: set[int]) -> str:
        return " or ".join(f"{value:,}" for value in sorted(values))

    images, seeds = {e.training.images for e in cells}, len(sweep.seeds)
    generated, nfe = {e.evaluation.images for e in cells}, {e.sampler.num_function_evaluations for e in cells}
    text = (
        f"{told(images)} images seen per cell, {counted(seeds, 'seed')}; distances on {told(generated)} "
        f"generated images, {told(nfe)} NFE, averaged weights."
    )
    if min(images) < HONEST_IMAGES or seeds < HONEST_SEEDS:
        text += (
            f" This run is too short to rank anything: a comparison needs at least {HONEST_IMAGES:,} images per cell "
            f"and {HONEST_SEEDS} seeds{f' ({sweep.longer})' if sweep.longer else ''}."
        )
    return text


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
