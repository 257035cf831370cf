"""Tables of the paper on one GPU, without Ray or MLflow, within given minutes.

    python -m experiments.gpu_suite --scale gpu --tables timestep_schedules --minutes 25 --data FOLDER --out results/gpu

FOLDER holds the built data set (`pforce data build openmoji --resolution 64 --destination FOLDER`). What is finished
are records in `--storage`, and lines of `OUT.jsonl`: a later call, on another machine too, does what is missing, and
`pforce records import OUT.jsonl` takes them into another storage. A training that is cut off goes on at its last
checkpoint where `--storage` is still there.

Cells come seeds outermost, so that a part is a whole table of fewer seeds. Needs torch, safetensors, scipy, pillow,
pydantic and webdataset; no Ray, no MLflow.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from experiments.paper import SCALES, TABLES
from pforce.config import flat_params
from pforce.data import Manifest
from pforce.orchestration.reproduction import sweep_of
from pforce.orchestration.sweep import ROW, Work
from pforce.records import exchange
from pforce.records.ledger import Ledger
from pforce.records.parts import Inputs
from pforce.records.provenance import made_on
from pforce.records.row import Row, row_of
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.storage import Storage
from pforce.training import Callback, Record, TrainState
from pforce.trial.migrate import take_in
from pforce.trial.reference import inputs_of
from pforce.trial.run import Paths, Where, auto_precision_on, choose_device, run_trial

LOOK_SECONDS = 2.0
SPARE_SECONDS = 5.0
"""Between the deadline and the end of all processes."""


class OutOfTime(Exception):
    """The minutes are over: the training stands at its last checkpoint."""


class Deadline(Callback):
    """Stops a training at a time of the wall clock."""

    def __init__(self, at: float) -> None:
        self.at = at

    def on_record(self, state: TrainState, record: Record) -> None:
        if time.time() > self.at:
            raise OutOfTime(f"at step {state.step} of {state.spec.training.steps}")


def say(line: str) -> None:
    """A warning."""
    print(f"warning: {line}", flush=True)


def planned(arguments: argparse.Namespace, storage: Storage) -> Iterator[tuple[Work, Inputs]]:
    """All cells that the storage lacks, in the order in which they are run; the sweeps are written down."""
    ledger, scale = Ledger(storage, say), SCALES[arguments.scale]
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
        SweepEntry(sweep.name, sweep.identity(work), cells, command="experiments.gpu_suite").write(storage)
        found += [
            (item, inputs)
            for item in work
            if arguments.rows is None or dict(item.cells[0].values)[ROW] in arguments.rows
        ]
    # Seeds outermost, over all tables; of cells that share a training the first comes early, the others late.
    turns: Counter[str] = Counter()
    there: set[str] = set()
    ordered = []
    for number, (item, inputs) in enumerate(found):
        if item.fingerprint not in there and row_of(item.parts, ledger) is None:
            ordered.append((item.experiment.seed, turns[item.training] > 0, number, (item, inputs)))
            turns[item.training] += 1
        there.add(item.fingerprint)
    yield from (item for *_, item in sorted(ordered, key=lambda entry: entry[:3]))


def run(work: Work, inputs: Inputs, arguments: argparse.Namespace, deadline: float) -> Row:
    """Train and measure one cell. OutOfTime and what a trial raises pass."""
    device = choose_device()
    where = Where(
        device,
        # On a GPU that processes share, each has that part of it.
        devices=1 / arguments.processes if device.type == "cuda" else 1,
        callbacks=[Deadline(deadline)],
        provenance={"launcher": f"gpu_suite, {arguments.processes} process(es)"},
    )
    row = run_trial(work.experiment, Paths(arguments.data, Storage.open(arguments.storage)), where, inputs=inputs)
    assert row is not None  # this process is the only worker
    return row


def serve(todo: Any, done: Any, arguments: argparse.Namespace, deadline: float) -> None:
    """A process: cell after cell, until there are none or the time is over."""
    torch.set_num_threads(arguments.threads)
    while time.time() < deadline:
        try:
            work, inputs = todo.get(timeout=1.0)
        except Empty:
            break
        try:
            done.put(("record", work.label, run(work, inputs, arguments, deadline).metrics))
        except OutOfTime as error:
            done.put(("stopped", work.label, str(error)))
        except torch.AcceleratorError:  # a device in a broken state fails whatever comes next: for another process
            done.put(("failed", work.label, traceback.format_exc()))
            break
        except Exception:  # one cell's failure ends no other
            done.put(("failed", work.label, traceback.format_exc()))
    done.put(("end", "", None))


def main() -> None:
    """Run what is missing; exit code 0, 3 where cells failed, 4 where the time ended first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [table.name for table in TABLES]
    parser.add_argument("--scale", choices=list(SCALES), default="gpu")
    parser.add_argument("--tables", nargs="+", choices=names, default=["timestep_schedules"])
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--seeds", nargs="+", type=int, help="others than the scale's")
    parser.add_argument("--data", type=Path, required=True, help="folder of the built data set")
    parser.add_argument("--out", type=Path, required=True, help="of the records, without ending: OUT.jsonl, OUT.json")
    parser.add_argument("--known", nargs="*", type=Path, default=[], help="files of records not to do again")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="records, checkpoints and caches")
    parser.add_argument("--minutes", type=float, default=25.0, help="wall-clock limit")
    parser.add_argument("--processes", type=int, default=1, help="cells at a time; small models fill a GPU by several")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a process")
    arguments = parser.parse_args()
    started = time.time()
    deadline = started + 60 * arguments.minutes - SPARE_SECONDS
    output = Path(f"{arguments.out}.jsonl")
    storage = Storage.open(arguments.storage)
    take_in([path for path in (*arguments.known, output) if path.exists()], storage, say)
    cells = list(planned(arguments, storage))
    print(f"{len(cells)} cells to run, {arguments.processes} at a time, {arguments.minutes:g} minutes", flush=True)

    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    todo.cancel_join_thread()  # what is left in it at the end does not hold the process
    for cell in cells:
        todo.put(cell)
    workers = [
        context.Process(target=serve, args=(todo, done, arguments, deadline), daemon=True)
        for _ in range(arguments.processes)
    ]
    for worker in workers:
        worker.start()
    counts: Counter[str] = Counter()
    while counts["end"] < len(workers):
        alive = any(worker.is_alive() for worker in workers)
        try:
            kind, label, value = done.get(timeout=LOOK_SECONDS)
        except Empty:
            if not alive or time.time() > deadline + SPARE_SECONDS:  # killed, or hanging in an evaluation
                break
            continue
        counts[kind] += 1
        if kind == "record":
            exchange.export(storage, [], output, say)  # whole each time: a machine that is taken away leaves all of it
            value = f"{value.get('cost/seconds', float('nan')):.1f} s, " + ", ".join(
                f"{name} {number:.3f}" for name, number in value.items() if name.startswith("fd/")
                and not name.endswith(("_low", "_high", "images", "_features"))
            )  # fmt: skip
        if kind != "end":
            print(f"[{time.time() - started:6.1f} s] {label}: {kind}: {value}", flush=True)
    for worker in workers:
        worker.terminate()
    device = choose_device()
    left = len(cells) - counts["record"] - counts["failed"]
    summary = {
        **made_on(device), "scale": arguments.scale, "tables": arguments.tables, "cells": len(cells),
        "finished": counts["record"], "failed": counts["failed"], "left": left, "processes": arguments.processes,
        "seconds": round(time.time() - started, 1),
    }  # fmt: skip
    Path(f"{arguments.out}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary), flush=True)
    raise SystemExit(3 if counts["failed"] else 4 if left else 0)


if __name__ == "__main__":
    main()
