"""`pforce reproduce`: run tables of the paper at a scale that fits this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table as Shown

from pforce import catalog
from pforce.base.console import DONE, STOPPED, make_console
from pforce.base.errors import require
from pforce.orchestration.options import Options
from pforce.orchestration.outlook import SUSTAINED_TFLOPS
from pforce.orchestration.reproduce import reproduce, show
from pforce.reproduction import ScaleName, Table

ALL = "all"


@dataclass(frozen=True)
class Arguments:
    """Run tables of the paper: train and measure what is missing, show the paper's numbers beside the measured ones,
    and report each finding as reproduced, not reproduced or undecided. Without a TABLE: list the tables.

    The same command resumes an interrupted table; tables share their trainings.
    """

    tables: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TABLE …]")] = ()
    """Names of tables, FILE.py:NAME for a table of your own, or all."""
    scale: ScaleName = "smoke"
    """smoke: about a minute per table, decides nothing. cpu: hours on 2 cores. gpu: about an hour per table on one GPU.
    paper: ImageNet 256² on 8 or more GPUs; try --dry-run first."""
    seeds: tuple[int, ...] | None = None
    """Training seeds, instead of the scale's."""
    planned_seeds: int | None = None
    """Seeds that each table will have in the end, where you look at its findings before all are there: each look spends
    a share of the 5 % error, almost nothing early. Default: the seeds of this command, whose findings get all of it.
    State it before the first look."""
    dry_run: bool = False
    """Print cells, steps, images, storage, device-hours and how they were estimated; run nothing."""
    show: bool = False
    """Print the table and its verdicts from the results in the storage; run nothing."""
    tflops: float = SUSTAINED_TFLOPS
    """TFLOP/s that a GPU sustains, for the hours that the dry run estimates."""
    gpus: int = 8
    """Number of GPUs among which the dry run divides the hours."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)

    def __post_init__(self) -> None:
        require(self.tflops > 0, "tflops", self.tflops, "> 0")
        require(self.gpus > 0, "gpus", self.gpus, "> 0")
        require(self.seeds is None or len(self.seeds) > 0, "seeds", self.seeds, "at least one")


def tables_named(names: tuple[str, ...]) -> list[Table]:
    """The tables with these names. ConfigError, with the nearest name, for an unknown one."""
    if ALL in names:
        return list(catalog.tables().values())
    return [catalog.table(name) for name in names]


def list_tables(console: Console) -> int:
    """Print names, questions and numbers of rows of all tables; return an exit code."""
    title = f"pforce reproduce TABLE --scale {'|'.join(catalog.scales())}"
    shown = Shown(title=title, title_justify="left", show_lines=False)
    for name in ("table", "question", "rows", "findings", "the paper's rows"):
        shown.add_column(name)
    scale = catalog.scales()["cpu"]
    for table in catalog.tables().values():
        rows = table.rows(scale)
        theirs = sum(row.paper is not None for row in rows) if table.paper else 0
        shown.add_row(table.name, table.question, str(len(rows)), str(len(table.statements(scale))), str(theirs or "–"))
    console.print(shown)
    return DONE


def reproduce_tables(a: Arguments) -> int:
    """Run tables of the paper at a scale that fits this machine, and report which of the paper's findings hold."""
    console = make_console()
    if not a.tables:
        return list_tables(console)
    tables = tables_named(a.tables)
    if a.show:
        for table in tables:
            show(table, catalog.scales()[a.scale], a.options, console, seeds=a.seeds, planned_seeds=a.planned_seeds)
        return DONE
    worst = DONE
    for table in tables:
        code = reproduce(
            table,
            catalog.scales()[a.scale],
            a.options,
            console,
            seeds=a.seeds,
            dry_run=a.dry_run,
            tflops=a.tflops,
            gpus=a.gpus,
            planned_seeds=a.planned_seeds,
        )
        worst = max(worst, code)
        if code == STOPPED:
            break
    return worst
