"""What every sweep script does: dry run or run, then the table, its files, and how to open MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pforce import results
from pforce.config import ConfigError
from pforce.data import DataError
from pforce.generation import JobError
from pforce.models import ModelFileError, PublishedError
from pforce.models.autoencoder import AutoencoderError
from pforce.orchestration.calibration import TIMED_EVALUATIONS, TIMED_STEPS, estimate
from pforce.orchestration.launch import Launcher, execute
from pforce.orchestration.plan import DONE, Options, Plan, plan
from pforce.orchestration.sweep import Sweep, format_value, parse_axis
from pforce.results.figures import cell_figure
from pforce.results.tables import COLUMNS, Column, Row
from pforce.sources import SourceError
from pforce.tracking import TrackingError
from pforce.validation import FieldError

QUICK = {"training.images": 6_400, "evaluation.images": 256, "evaluation.validation_images": 256}
"""Settings of a training sweep's quick preset: minutes, ranks nothing."""
HONEST_IMAGES = 96_000
HONEST_SEEDS = 3
USAGE_ERROR = 2
USAGE_ERRORS = (
    ConfigError, FieldError, DataError, TrackingError, SourceError, PublishedError, ModelFileError, AutoencoderError,
    JobError,
)  # fmt: skip
"""What a user's input can be wrong in; each message names it, what is wrong, and the cure."""


def exit_on_errors(main: Callable[[], int]) -> NoReturn:
    """Run a script's main; errors of the user's input are one line and exit code 2, before anything is started."""
    try:
        code = main()
    except USAGE_ERRORS as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        code = USAGE_ERROR
    sys.exit(code)


def run_sweep(
    sweep: Sweep,
    options: Options,
    *,
    dry_run: bool = False,
    launcher: Launcher | None = None,
    report: Callable[[Plan, Console], None] | None = None,
) -> int:
    """Plan, run what is missing, print and write the table. Returns the exit code.

    The launcher is Ray Tune's where none is given; ray is imported only if something has to run. The report is
    `print_report` where none is given.
    """
    console = make_console()
    started = time.perf_counter()
    planned = plan(sweep, options, console)
    for note in planned.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    if dry_run:
        _print_dry_run(planned, console)
        return DONE
    console.print(
        f"{sweep.name}: {len(sweep.cells())} cells, {len(planned.work)} distinct, {len(planned.done)} finished before"
    )
    if launcher is None and planned.missing:
        from pforce.orchestration import tune

        launcher = tune.launch
    code = execute(planned, console, launcher) if launcher else DONE
    (report or print_report)(planned, console)
    console.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)
    return code


def make_console() -> Console:
    """A console; where the output is no terminal (a log, a pipe), wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def table_rows(planned: Plan) -> list[Row]:
    """The rows of a sweep's table: cells without their seed; values of one distribution are one row."""
    headers = planned.sweep.headers
    rows: dict[tuple[tuple[str, ...], ...], Row] = {}
    for item in planned.work:
        key = tuple(tuple(format_value(value) for _, value in cell.values) for cell in item.cells)
        columns = zip(*key, strict=True)
        labels = {name: ", ".join(dict.fromkeys(column)) for name, column in zip(headers, columns, strict=True)}
        row = rows.setdefault(key, Row(labels, []))
        rows[key] = Row(labels, [*row.fingerprints, item.fingerprint])
    return list(rows.values())


def print_report(planned: Plan, console: Console, columns: Sequence[Column] = COLUMNS) -> None:
    """The table on the console and in files, its figure, and how to open MLflow."""
    sweep, options = planned.sweep, planned.options
    table = results.cell_table(results.runs(options.uri), table_rows(planned), columns)
    console.print(results.to_terminal(table, f"{sweep.name} · {sweep.base.name}"))
    caveat = _caveat(sweep)
    console.print(caveat, soft_wrap=True, highlight=False)
    folder = options.storage.absolute()
    table.to_csv(folder / f"{sweep.name}.csv", index=False)
    (folder / f"{sweep.name}.md").write_text(f"{results.to_markdown(table)}\n\n{caveat}\n")
    cell_figure(table, sweep.headers, folder / f"{sweep.name}.png")
    console.print(f"Table and figure: {folder / sweep.name}.{{csv,md,png}}", soft_wrap=True, highlight=False)
    print_mlflow(options.uri, console)


def print_mlflow(uri: str, console: Console) -> None:
    """How to look at the runs."""
    where = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else uri
    console.print(f"Open MLflow: {where}", soft_wrap=True, highlight=False)


def _caveat(sweep: Sweep) -> str:
    cells = [cell.experiment for cell in sweep.cells()]

    def told(values: set[int]) -> str:
        return " or ".join(f"{value:,}" for value in sorted(values))

    images, seeds = {e.training.images for e in cells}, len(sweep.seeds)
    generated, nfe = {e.evaluation.images for e in cells}, {e.sampler.num_function_evaluations for e in cells}
    text = (
        f"{told(images)} images seen a cell, {seeds} seed(s); distances on {told(generated)} generated images, "
        f"{told(nfe)} NFE, averaged weights."
    )
    if min(images) < HONEST_IMAGES or seeds < HONEST_SEEDS:
        text += (
            f" So short a run ranks nothing: a comparison needs at least {HONEST_IMAGES:,} images a cell and "
            f"{HONEST_SEEDS} seeds (--preset full)."
        )
    return text


def _print_dry_run(planned: Plan, console: Console) -> None:
    table = Table(title=f"{planned.sweep.name}: {len(planned.work)} trials", title_justify="left")
    for name in ("cell", "fingerprint", "state"):
        table.add_column(name)
    for item in planned.work:
        state = "done" if item.fingerprint in planned.done else "to run"
        table.add_row(item.label, item.fingerprint, state)
    console.print(table)
    if not planned.missing:
        console.print("Nothing to run.")
        return
    options = planned.options
    e = estimate(
        planned.missing[0].experiment,
        planned.data,
        len(planned.missing),
        cpus=options.cpus_per_trial,
        gpus=options.gpus_per_trial,
    )
    console.print(
        f"Estimate for this machine, from {TIMED_STEPS} training steps and {TIMED_EVALUATIONS} evaluations: "
        f"{e.training_seconds + e.evaluation_seconds:,.0f} s a trial ({e.training_seconds:,.0f} s training), "
        f"{e.placement.concurrent} at a time on {e.placement.cpus} core(s): about {duration(e.seconds)} for "
        f"{len(planned.missing)} trials.",
        highlight=False,
        soft_wrap=True,
    )


def duration(seconds: float) -> str:
    """`1 h 23 min`, `4 min 10 s`, `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """FIELD=VALUE arguments as changes of an experiment; a value with commas is a tuple."""
    axes = [parse_axis(text) for text in texts]
    if any(axis.path == "seed" for axis in axes):
        raise ConfigError("seed: the seeds of a sweep are set with --seeds")
    return {axis.path: axis.values[0] if len(axis.values) == 1 else axis.values for axis in axes}
