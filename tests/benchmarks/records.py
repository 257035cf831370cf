"""What the ledger costs: a sweep of 2,000 cells of five parts, planned on an empty storage, written, read, planned.

In turn: seconds to plan a sweep none of which is finished, to write its records, each synced, and, in another process,
to read its rows as a table and to plan it again when all is finished.

    python -m tests.benchmarks.records [--cells 2000]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pforce import results
from pforce.base.console import make_console
from pforce.orchestration.axes import Axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.sweep import Sweep
from pforce.storage import Storage
from tests.results.conftest import known
from tests.training.conftest import tiny

SEEDS = 4


def sweep(cells: int) -> Sweep:
    means = tuple(round(number / 1000, 3) for number in range(cells // SEEDS))
    return Sweep("many", tiny(6), (Axis("timesteps.m", means),), tuple(range(SEEDS)))


def planned(folder: Path, cells: int) -> Plan:
    return plan(sweep(cells), Options(storage=str(folder)), make_console(quiet=True))


def timed(what: str, function: Callable[[], object]) -> None:
    started = time.perf_counter()
    found = function()
    print(f"{what}: {time.perf_counter() - started:.2f} s ({found})", flush=True)


def fill(folder: Path, cells: int) -> str:
    found = planned(folder, cells)
    keep_sweep(found)
    for number, item in enumerate(found.work):
        known(item, {"fd/openmoji": 5.0 + number, "val/loss": 0.2, "difficulty/pearson_t0.20": 0.5}, found.ledger)
    return f"{len(list(found.ledger.all())):,} records"


def main() -> None:
    """Print seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="of a call before: read only")
    arguments = parser.parse_args()
    if arguments.folder is None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            timed("planned, nothing finished", lambda: f"{len(planned(folder, arguments.cells).missing)} missing")
            timed("planned, written and synced", lambda: fill(folder, arguments.cells))
            command = [sys.executable, "-m", "tests.benchmarks.records", "--cells", str(arguments.cells)]
            subprocess.run([*command, "--folder", name], check=True)
        return
    folder = arguments.folder
    timed("read as a table, another process", lambda: f"{len(results.runs(folder))} rows")
    timed("read again", lambda: f"{len(results.runs(folder))} rows")
    timed("planned, all finished", lambda: f"{len(planned(folder, arguments.cells).missing)} missing")
    timed("storage of a folder opened", lambda: Storage.open(folder).uri != "")


if __name__ == "__main__":
    main()
