"""Tables of the paper on one GPU, without Ray or MLflow, within given minutes.

    python -m experiments.gpu_suite --scale gpu --tables timestep_schedules --minutes 25 --data FOLDER --out results/gpu

FOLDER holds the built data set (`pforce data build openmoji --resolution 64 --destination FOLDER`). Finished trials
are lines of `OUT.jsonl`, told by fingerprint: a later call, on another machine too, does what is missing, and
`pforce records import OUT.jsonl` takes them into MLflow. A training that is cut off goes on at its last checkpoint
where `--storage` is still there.

Cells come seeds outermost, so that a part is a whole table of fewer seeds. Needs torch, safetensors, scipy, pillow,
pydantic and webdataset; no Ray, no MLflow.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import platform
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from experiments.paper import SCALES, TABLES
from pforce import records
from pforce.data import Manifest
from pforce.orchestration.reproduction import sweep_of
from pforce.orchestration.sweep import ROW, Work, flat_params
from pforce.records import TrialRecord
from pforce.references import inputs_of
from pforce.training import Callback, Record, TrainState
from pforce.training.loop import use_bfloat16
from pforce.trial import SAMPLES, Paths, choose_device, evaluation_folder, run_trial

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


def planned(arguments: argparse.Namespace) -> Iterator[tuple[str, Work, dict[str, str]]]:
    """(sweep, work, inputs) of all cells that no record has, in the order in which they are run."""
    there = {record["fingerprint"] for path in arguments.known if path.exists() for record in records.read(path)}
    scale, found = SCALES[arguments.scale], []
    for table in TABLES:
        if table.name not in arguments.tables:
            continue
        sweep = sweep_of(table, scale, arguments.seeds)
        evaluation = sweep.base.evaluation
        inputs = inputs_of(evaluation, Manifest.load(arguments.data), evaluation.load_detector())
        found += [
            (sweep.name, work, inputs)
            for work in sweep.work(inputs)
            if arguments.rows is None or dict(work.cells[0].values)[ROW] in arguments.rows
        ]
    # Seeds outermost, over all tables; of cells that share a training the first comes early, the others late.
    turns: Counter[str] = Counter()
    ordered = []
    for number, (name, work, inputs) in enumerate(found):
        if work.fingerprint not in there:
            ordered.append((work.experiment.seed, turns[work.training] > 0, number, (name, work, inputs)))
            turns[work.training] += 1
        there.add(work.fingerprint)
    yield from (item for *_, item in sorted(ordered, key=lambda entry: entry[:3]))


def environment(device: torch.device) -> dict[str, str]:
    """Tags of every record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    tags = {"device": name, "version.torch": torch.__version__, "version.python": platform.python_version()}
    for package in ("pforce", "numpy", "scipy"):
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return tags


def run(name: str, work: Work, inputs: dict[str, str], arguments: argparse.Namespace, deadline: float) -> TrialRecord:
    """Train and measure one cell. OutOfTime and what a trial raises pass."""
    device, started = choose_device(), time.time()
    experiment = work.experiment
    paths = Paths(arguments.data, arguments.storage / "trials" / work.training, arguments.storage / "references")
    metrics = run_trial(
        experiment,
        paths,
        identity=work.fingerprint,
        training=work.training,
        device=device,
        callbacks=[Deadline(deadline)],
        # On a GPU that processes share, each has that part of it.
        device_count=1 / arguments.processes if device.type == "cuda" else 1,
    )
    files = []
    picture = evaluation_folder(paths.folder, work.fingerprint) / SAMPLES
    if picture.exists() and experiment.seed == arguments.pictures:
        relative = Path(arguments.out.name) / work.fingerprint / SAMPLES
        (arguments.out.parent / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, arguments.out.parent / relative)
        files.append(relative.as_posix())
    tags = {
        **environment(device),
        **{f"input.{key}": value for key, value in inputs.items()},
        "weights": "ema",
        "pforce.seed": str(experiment.seed),
        "pforce.training": work.training,
        "precision": "bfloat16" if use_bfloat16(experiment.training.precision, device) else "float32",
        "workers": "1",
        "launcher": f"gpu_suite, {arguments.processes} process(es)",
    }
    return TrialRecord(
        format=records.FORMAT,
        sweep=name,
        name=work.label,
        fingerprint=work.fingerprint,
        params={key: str(value) for key, value in flat_params(experiment).items()},
        metrics={key: float(value) for key, value in metrics.items() if math.isfinite(value)},
        tags=tags,
        started=int(1000 * started),
        ended=int(1000 * time.time()),
        step=experiment.training.images,
        files=files,
    )


def serve(todo: Any, done: Any, arguments: argparse.Namespace, deadline: float) -> None:
    """A process: cell after cell, until there are none or the time is over."""
    torch.set_num_threads(arguments.threads)
    while time.time() < deadline:
        try:
            name, work, inputs = todo.get(timeout=1.0)
        except Empty:
            break
        try:
            done.put(("record", work.label, run(name, work, inputs, arguments, deadline)))
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
    parser.add_argument("--known", nargs="*", type=Path, default=[], help="further files of records not to do again")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="checkpoints and caches")
    parser.add_argument("--minutes", type=float, default=25.0, help="wall-clock limit")
    parser.add_argument("--processes", type=int, default=1, help="cells at a time; small models fill a GPU by several")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a process")
    parser.add_argument("--pictures", type=int, default=0, help="seed whose sample grids are kept")
    arguments = parser.parse_args()
    started = time.time()
    deadline = started + 60 * arguments.minutes - SPARE_SECONDS
    output = Path(f"{arguments.out}.jsonl")
    arguments.known.append(output)
    cells = list(planned(arguments))
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
            records.append(output, value)
            value = f"{value['metrics'].get('cost/seconds', math.nan):.1f} s, " + ", ".join(
                f"{name} {value['metrics'][name]:.3f}" for name in value["metrics"] if name.startswith("fd/")
                and not name.endswith(("_low", "_high", "images", "_features"))
            )  # fmt: skip
        if kind != "end":
            print(f"[{time.time() - started:6.1f} s] {label}: {kind}: {value}", flush=True)
    for worker in workers:
        worker.terminate()
    device = choose_device()
    left = len(cells) - counts["record"] - counts["failed"]
    summary = {
        **environment(device), "scale": arguments.scale, "tables": arguments.tables, "cells": len(cells),
        "finished": counts["record"], "failed": counts["failed"], "left": left, "processes": arguments.processes,
        "seconds": round(time.time() - started, 1),
    }  # fmt: skip
    Path(f"{arguments.out}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary), flush=True)
    raise SystemExit(3 if counts["failed"] else 4 if left else 0)


if __name__ == "__main__":
    main()
