"""Tables of the paper on one GPU, without Ray or MLflow, within given minutes.

    python -m pforce_experiments.gpu_suite --scale gpu --tables timestep_schedules --minutes 25 --data FOLDER --out DIR

FOLDER holds the built data set (`pforce data build openmoji --resolution 64 --destination FOLDER`). Finished cells are
records in `--storage` and lines of `OUT.jsonl`: a later call, even on another machine, runs what is missing, and
`pforce records import OUT.jsonl` imports them into another storage. An interrupted training resumes from its last
checkpoint if `--storage` still exists.

Cells are ordered by seed first, as many seeds at once as there are processes, so that an unfinished run still gives
whole tables of fewer seeds. Needs torch,
safetensors, scipy, pillow and webdataset; no Ray, no MLflow, no pydantic.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pforce.base.console import make_console, stop_on_signals
from pforce.base.words import counted
from pforce.config import flat_params
from pforce.data import Manifest
from pforce.executors.executor import make
from pforce.executors.support.setup import Setup
from pforce.metrics.names import CostName
from pforce.orchestration.display import Display
from pforce.orchestration.drive import Source, drive
from pforce.orchestration.recorder import Entry, Recorder
from pforce.orchestration.reproduction import sweep_of
from pforce.orchestration.sweep import ROW, Work
from pforce.records import exchange
from pforce.records.ledger import Ledger
from pforce.records.parts import Inputs
from pforce.records.provenance import made_on
from pforce.records.row import row_of
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.storage import Storage
from pforce.trial.migrate import take_in
from pforce.trial.reference import inputs_of
from pforce.trial.task import Done, Failed, Idle, Task, Train
from pforce.trial.where import auto_precision_on, choose_device
from pforce_experiments.paper import SCALES, TABLES

SPARE_SECONDS = 5.0
"""Seconds between the deadline and the end of all processes."""


def say(line: str) -> None:
    """Print a warning."""
    print(f"warning: {line}", flush=True)


def planned(arguments: argparse.Namespace, storage: Storage) -> Iterator[tuple[Work, Inputs]]:
    """Yield the cells that the storage lacks, in the order in which they run, and write their sweeps to the storage."""
    ledger, scale = Ledger(storage, say), SCALES[arguments.scale]
    seeds = list(arguments.seeds or scale.seeds)
    found: list[tuple[Work, Inputs]] = []
    for table in TABLES:
        if table.name not in arguments.tables:
            continue
        sweep = sweep_of(table, scale, arguments.seeds)
        evaluation = sweep.base.evaluation
        auto = auto_precision_on(choose_device())
        inputs = inputs_of(evaluation, Manifest.load(arguments.data), evaluation.load_detector(), auto=auto)
        work = sweep.work(inputs)
        cells = [
            CellEntry.of(item.label, item.parts, flat_params(item.experiment), item.experiment.seed) for item in work
        ]  # fmt: skip
        SweepEntry(sweep.name, sweep.identity(work), cells, command="pforce_experiments.gpu_suite").write(storage)
        found += [
            (item, inputs)
            for item in work
            if arguments.rows is None or dict(item.cells[0].values)[ROW] in arguments.rows
        ]
    # By groups of as many seeds as there are processes; within a group, the first cells of all trainings, then the
    # second ones: processes that wait for each other's trainings would leave the GPU idle.
    turns: Counter[str] = Counter()
    there: set[str] = set()
    ordered = []
    for number, (item, inputs) in enumerate(found):
        if item.fingerprint not in there and row_of(item.parts, ledger) is None:
            group = seeds.index(item.experiment.seed) // arguments.processes
            ordered.append((group, turns[item.training], number, (item, inputs)))
            turns[item.training] += 1
        there.add(item.fingerprint)
    yield from (item for *_, item in sorted(ordered, key=lambda entry: entry[:3]))


class Cells(Source):
    """The missing cells. Each is exported as soon as it is finished, so that nothing is lost with the machine."""

    def __init__(self, cells: list[tuple[Work, Inputs]], arguments: argparse.Namespace, storage: Storage) -> None:
        self.waiting, self.arguments, self.storage = iter(cells), arguments, storage
        self.work = {item.fingerprint: item for item, _ in cells}
        self.started = time.time()
        self.counts: Counter[str] = Counter()

    def next(self) -> Task | Idle:
        found = next(self.waiting, None)
        if found is None:
            return Idle.END
        item, inputs = found
        made = {"launcher": f"gpu_suite, {counted(self.arguments.processes, 'process', 'processes')}"}
        return Train(
            item.fingerprint, item.label, item.experiment, inputs, str(self.arguments.data), self.storage.uri,
            item.training, provenance=made,
        )  # fmt: skip

    def tell(self, label: str, text: str) -> None:
        print(f"[{time.time() - self.started:6.1f} s] {label}: {text}", flush=True)

    def done(self, task: Task, event: Done) -> None:
        self.counts["finished"] += 1
        exchange.export(self.storage, [], Path(f"{self.arguments.out}.jsonl"), say)
        distances = ", ".join(f"{name} {number:.3f}" for name, number in event.metrics.items() if name.startswith("fd/")
                              and not name.endswith(("_low", "_high", "images", "_features")))  # fmt: skip
        self.tell(task.label, f"finished: {event.metrics.get(CostName.SECONDS, float('nan')):.1f} s, {distances}")

    def failed(self, task: Task, event: Failed) -> None:
        self.counts["failed"] += 1
        self.tell(task.label, f"failed: {event.failure.reason}: {event.failure.message}\n{event.traceback}")


def main() -> None:
    """Run the missing cells. Exit code 0, 3 where cells failed, 4 where the time ended first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [table.name for table in TABLES]
    parser.add_argument("--scale", choices=list(SCALES), default="gpu")
    parser.add_argument("--tables", nargs="+", choices=names, default=["timestep_schedules"])
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--seeds", nargs="+", type=int, help="training seeds, instead of the scale's")
    parser.add_argument("--data", type=Path, required=True, help="folder of the built data set")
    parser.add_argument(
        "--out", type=Path, required=True, help="path of the output without suffix: writes OUT.jsonl, OUT.json"
    )
    parser.add_argument(
        "--known", nargs="*", type=Path, default=[], help="files of records whose cells are not run again"
    )
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="records, checkpoints and caches")
    parser.add_argument("--minutes", type=float, default=25.0, help="wall-clock limit")
    parser.add_argument(
        "--processes", type=int, default=1, help="cells that run at once; several small models fill a GPU"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per process")
    arguments = parser.parse_args()
    started = time.time()
    deadline = started + 60 * arguments.minutes - SPARE_SECONDS
    output = Path(f"{arguments.out}.jsonl")
    storage = Storage.open(arguments.storage)
    take_in([path for path in (*arguments.known, output) if path.exists()], storage, say)
    cells = list(planned(arguments, storage))
    print(
        f"{counted(len(cells), 'cell')} to run, {arguments.processes} at a time, {arguments.minutes:g} minutes",
        flush=True,
    )

    source, device = Cells(cells, arguments, storage), choose_device()
    console = make_console(width=200)
    recorder = Recorder(None, Display(console, "cells", len(cells)), lambda cell: Entry(cell, cell))
    setup = Setup(
        "gpu_suite", arguments.processes, cpus=arguments.threads,
        gpus=1 / arguments.processes if device.type == "cuda" else 0,
        scratch=storage.root,
    )  # fmt: skip
    with stop_on_signals(), make("processes", setup) as executor:
        # Cells that have not ended by then write a checkpoint.
        drive(executor, source, recorder, deadline=time.monotonic() + deadline - time.time())
    counts = source.counts
    left = len(cells) - counts["finished"] - counts["failed"]
    summary = {
        **made_on(device), "scale": arguments.scale, "tables": arguments.tables, "cells": len(cells),
        "finished": counts["finished"], "failed": counts["failed"], "left": left, "processes": arguments.processes,
        "seconds": round(time.time() - started, 1),
    }  # fmt: skip
    Path(f"{arguments.out}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary), flush=True)
    raise SystemExit(3 if counts["failed"] else 4 if left else 0)


if __name__ == "__main__":
    main()
