"""The table of a sweep: its rows as users name them, its claims, its files and figure, and how to open MLflow."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from pforce import results
from pforce.base.errors import ConfigError, require
from pforce.base.files import write_bytes
from pforce.config import with_fields
from pforce.metrics.names import DIFFICULTY, HEADLINE_TIMES, VALIDATION_LOSS
from pforce.orchestration.axes import format_value
from pforce.orchestration.looks import LATER, looks_with, plan_notes, require_planned
from pforce.orchestration.plan import Plan, this_command
from pforce.orchestration.sweep import TRIAL, Cell, Sweep, Work
from pforce.records.ledger import Ledger
from pforce.records.parts import cell_parts
from pforce.results import Report, Row
from pforce.results.figures import cell_figure
from pforce.results.growth import along, with_hours
from pforce.results.growth_figure import growth_figure
from pforce.results.page import Section, png
from pforce.results.statistics import MOST_CLAIMS
from pforce.results.stored import storage_frame
from pforce.results.sweep_run import Summary
from pforce.results.tables import COLUMNS, Column
from pforce.storage import Storage, StorageError
from pforce.storage.identity import identity_of
from pforce.tracking import Tracker, is_server, mask, runs_frame
from pforce.tracking.charts import addresses
from pforce.tracking.view import key_of
from pforce.trial.where import with_precision

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
    reach: float | None = None
    """Add a column: device-hours of training until the metric that rows are compared by is as good as this, such as a
    distance of 12. For trainings that are measured along the way (--measure-every)."""
    planned_seeds: int | None = None
    """Seeds that the table will have in the end, where you look at its claims before all are there: each look spends a
    share of the 5 % error, almost nothing early. Default: the seeds of this command, whose claims get all of it. State
    it before the first look."""

    def __post_init__(self) -> None:
        require_planned(self.planned_seeds)
        most = f"at most {MOST_CLAIMS} rows: a correction for more finds nothing at a few seeds"
        require(len(self.compare) <= MOST_CLAIMS, "compare", self.compare, most)


ALL_ROWS = Comparison()


def table_rows(planned: Plan) -> list[Row]:
    """The rows of a sweep's table: cells without their seed; values with the same distribution share a row."""
    headers = planned.sweep.headers
    rows: dict[tuple[tuple[str, ...], ...], Row] = {}
    for item in furthest(planned.work):
        key = tuple(tuple(format_value(value) for _, value in cell.values) for cell in item.cells)
        columns = zip(*key, strict=True)
        labels = {name: ", ".join(dict.fromkeys(column)) for name, column in zip(headers, columns, strict=True)}
        row = rows.setdefault(key, Row(labels, []))
        rows[key] = Row(labels, [*row.fingerprints, item.fingerprint])
    return list(rows.values())


def furthest(work: Sequence[Work]) -> list[Work]:
    """The cells that a table shows: of a search's trial that stops at rungs, only those of its furthest one, whose
    values name the trial alone."""
    reached: dict[str, float] = {}
    for item in work:
        for cell in item.cells:
            if (number := _trial_of(cell)) is not None:
                reached[number] = max(reached.get(number, 0), cell.rung or math.inf)
    found = []
    for item in work:
        cells = [cell for cell in item.cells if (n := _trial_of(cell)) is None or (cell.rung or math.inf) == reached[n]]
        if cells:
            shown = [replace(cell, values=cell.values[:-1]) if cell.rung else cell for cell in cells]
            found.append(replace(item, cells=tuple(shown)))
    return found


def _trial_of(cell: Cell) -> str | None:
    name, value = cell.values[0] if cell.values else ("", "")
    return str(value) if name == TRIAL else None


def _find_rows(planned: Plan, rows: Sequence[Row], text: str) -> list[int]:
    """Numbers, from 0, of the rows that a user's text names."""
    paths = [path for axis in planned.sweep.axes for path in axis.paths]
    axes = dict(zip(paths, planned.sweep.axis_headers, strict=True))

    def matches(row: Row, part: str) -> bool:
        name, _, value = (word.strip() for word in part.partition("="))
        header = axes.get(name, name)
        return header in row.labels and _same_value(value, row.labels[header])

    if text.strip().isdecimal():
        return [int(text) - 1] if 0 < int(text) <= len(rows) else []
    return [n for n, row in enumerate(rows) if all(matches(row, part) for part in text.split(","))]


def _listed(rows: Sequence[Row], chosen: Sequence[int] = ()) -> str:
    """Rows, or the chosen ones, as a user may name them."""
    listed = []
    for number, row in enumerate(rows):
        if number in chosen or not chosen:
            values = (f"{name}={value.split(', ')[0]}" for name, value in row.labels.items())
            listed.append(f"{number + 1}: {','.join(values)}")
    rest = f" and {len(listed) - MOST_LISTED} more" if len(listed) > MOST_LISTED else ""
    return f"{'; '.join(listed[:MOST_LISTED])}{rest}"


def _find_row(planned: Plan, rows: Sequence[Row], option: str, text: str) -> int:
    """The number, from 0, of the row that a user's text names. ConfigError where it names none or several."""
    found = _find_rows(planned, rows, text)
    if len(found) == 1:
        return found[0]
    wrong = f"names {len(found)} rows; name one of" if found else "names no row; the rows are"
    raise ConfigError(f"{option} {text}: {wrong} {_listed(rows, found)}")


def _same_value(text: str, label: str) -> bool:
    """Whether a user's value is one of a row's values; 0.70 equals 0.7."""
    values = label.split(", ")
    try:
        return text in values or float(text) in [float(value) for value in values]
    except ValueError:
        return False


def prioritized(planned: Plan, texts: Sequence[str]) -> set[str]:
    """Fingerprints of the cells of rows that run first. ConfigError where a text names no row."""
    rows = table_rows(planned)
    found: set[str] = set()
    for text in texts:
        numbers = _find_rows(planned, rows, text)
        if not numbers:
            raise ConfigError(f"--priority {text}: names no row; the rows are {_listed(rows)}")
        found |= {fingerprint for number in numbers for fingerprint in rows[number].fingerprints}
    return found


def compared_rows(planned: Plan, comparison: Comparison) -> tuple[int, list[int]]:
    """Numbers, from 0, of the baseline's row and of the rows that are compared with it.

    ConfigError for a row that the table will not have; it names those that it will have. FieldError for fewer planned
    seeds than it runs.
    """
    require_planned(comparison.planned_seeds, len(planned.sweep.seeds))
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


def _claims(
    planned: Plan, frame: pd.DataFrame, rows: Sequence[Row], comparison: Comparison
) -> tuple[list[str], list[str]]:
    """The claims of the table about its rows, in sentences, and the note on its plan. They count as looked at."""
    baseline, others = compared_rows(planned, comparison)
    metric = results.primary_metric(frame, rows)
    if metric is None or not others:
        return [], []
    if len(others) > MOST_CLAIMS:
        return [f"none, as {len(rows)} rows are too many to correct for; choose at most {MOST_CLAIMS} with --compare, "
                "and --baseline"], []  # fmt: skip
    claims = results.row_claims(frame, rows, metric, baseline, others)
    seeds = {cell.experiment.seed for cell in planned.cells} | set(planned.sweep.seeds)
    number = max(len(seeds), comparison.planned_seeds or 0)
    looks = looks_with(planned.options.place, planned.sweep.name, claims, number, planned.ledger.say, shown=True)
    return results.sentences(claims, looks), plan_notes(claims, looks)


def print_report(
    planned: Plan, console: Console, columns: Sequence[Column] = COLUMNS, comparison: Comparison = ALL_ROWS
) -> None:
    """Print the table with notes and claims, write it and its figure to files, and print how to open MLflow."""
    found = sweep_summary(planned, sweep_frame(planned), columns=columns, comparison=comparison)
    found.report.print(console)
    publish(planned, found, console)


def sweep_summary(
    planned: Plan, frame: pd.DataFrame, final: bool = True, *, columns: Sequence[Column] = COLUMNS,
    comparison: Comparison = ALL_ROWS,
) -> Summary:  # fmt: skip
    """The table of a sweep with notes, claims and figure.

    Args:
        frame: finished cells, and runs of others; see `sweep_frame`.
        final: whether claims are made, which is a look at them. While the sweep runs, its rows are ordered by what is
            known of them instead of by its axes.
    """
    sweep, rows = planned.sweep, table_rows(planned)
    if not final:
        rows = results.by_what_is_known(frame, rows)
    claims, plan_note = _claims(planned, frame, rows, comparison) if final else ([], [LATER])
    notes, title = [caveat(planned), *plan_note, *results.table_notes(frame, rows)], title_of(sweep)
    table = results.cell_table(frame, rows, columns, under_way=not final)
    metric = results.primary_metric(frame, rows)
    if comparison.reach is not None and metric is not None and along(rows):
        table = with_hours(table, frame, rows, metric, comparison.reach)
    report = Report(table, title, notes, claims)
    drawn = cell_figure(report.table, sweep.headers)
    several = bool((report.table["n"] > 1).any()) if "n" in report.table else False
    caption = "Means with bars of one standard deviation over seeds" if several else "One seed: no bars over seeds"
    figures = [] if drawn is None else [(png(drawn), caption)]
    figures += growth_figures(frame, rows)
    section = Section(title, report=report, figures=figures, commands=[this_command()])
    return Summary(section, frame, list(zip(results.row_names(rows), rows, strict=True)))


def growth_figures(frame: pd.DataFrame, rows: Sequence[Row]) -> list[tuple[bytes, str]]:
    """The figure of quality against images seen, with its caption, where trainings are measured along the way."""
    metric = results.primary_metric(frame, rows)
    metrics = [*([metric] if metric else []), VALIDATION_LOSS, *(f"{DIFFICULTY[0]}_t{t:.2f}" for t in HEADLINE_TIMES)]
    drawn = growth_figure(frame, rows, list(dict.fromkeys(metrics))) if along(rows) else None
    return [] if drawn is None else [(png(drawn), "Quality against images seen and device-hours")]


def title_of(sweep: Sweep) -> str:
    """Title of a sweep's table."""
    return f"{sweep.name} · {sweep.base.name}"


def publish(planned: Plan, found: Summary, console: Console) -> None:
    """Write a sweep's report and its figure to files, and print where they are and how to open MLflow."""
    sweep, options = planned.sweep, planned.options
    stem = options.root / sweep.name
    written = found.report.write(stem)
    for drawn, _ in found.section.figures[:1]:
        written.append(Path(f"{stem}.png"))
        write_bytes(written[-1], drawn, lasting=False)
    push_files(options.place, [path.name for path in written], console)
    where = f"{options.place}, and here {stem}" if options.place.remote else stem
    console.print(f"Table and figure: {where}.{{csv,md,tex,html,png}}", soft_wrap=True)
    if planned.tracker is not None:
        print_mlflow(options.uri, console, tracker=planned.tracker, storage=options.place, name=sweep.name,
                     identity=planned.identity)  # fmt: skip


def sweep_frame(planned: Plan, ledger: Ledger | None = None) -> pd.DataFrame:
    """The finished cells of the storage, and the tracking store's runs of unfinished cells, where it is available.

    Args:
        ledger: ledger of the storage, for another thread than the plan's.
    """
    ledger, name = ledger or planned.ledger, planned.sweep.name
    ledger.refresh()
    try:
        stored = storage_frame(planned.options.place, ledger=ledger)
    except StorageError as error:  # the bucket has become unreachable; the tracking store knows the finished cells
        if planned.tracker is None:
            raise
        warnings.warn(f"the table is of the tracking store: {error}", stacklevel=2)
        return runs_frame(planned.tracker, name)
    if planned.tracker is None:
        return stored
    try:
        key = key_of(identity_of(planned.options.place), name)
        return results.with_states(stored, runs_frame(planned.tracker, name, keys=[key]))
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


def print_mlflow(
    uri: str, console: Console, *, tracker: Tracker | None = None, storage: Storage | None = None, name: str = "",
    identity: str = "",
) -> None:  # fmt: skip
    """Print how to open MLflow, and where a sweep's charts and table are there.

    Args:
        tracker, storage, name, identity: the store, and the sweep; without a store only its address is printed.
    """
    named, found = mask(uri), {}
    if tracker is not None and storage is not None:
        with suppress(StorageError):  # a bucket that is away: the results are here, and so is MLflow's address
            own = identity_of(storage)
            page, run = key_of(own, name), key_of(own, name, identity)
            found = addresses(tracker, page, run, host=named if is_server(uri) else None)
    where = named if is_server(uri) else f"mlflow ui --backend-store-uri {shlex.quote(named)}"
    lines = [f"Open MLflow: {where}", *(f"{what:>11}: {address}" for what, address in found.items())]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def caveat(planned: Plan) -> str:
    """A sentence on the size of the sweep's cells, and whether they are large enough to rank anything."""
    cells = [cell.experiment for cell in planned.cells]
    return results.size_note(
        {e.training.images for e in cells}, {e.evaluation.images for e in cells},
        {e.sampler.num_function_evaluations for e in cells}, seeds=len({e.seed for e in cells}),
        longer=planned.sweep.longer,
    )  # fmt: skip
