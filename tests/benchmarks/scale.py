"""How far it scales: sweeps whose trials sleep and report, on a Ray cluster of logical nodes on this machine.

    python -m tests.benchmarks.scale --trials 125 250 500 1000 2000 --nodes 4
    python -m tests.benchmarks.scale --trials 200 --nodes 1 2 4 8 16
    python -m tests.benchmarks.scale --trials 1000 --bare         # a bare Tune loop of such trials

Everything but the trials' work is real: plan, leases, events, records, MLflow's database, table. Each line is a process
of its own; CPU seconds and memory are the driver's. The last lines give the exponent of growth with the number of
trials, by the slope between logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.cluster_utils import Cluster

from pforce import results
from pforce.base.console import make_console
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import plan
from pforce.orchestration.sweep import Work
from pforce.orchestration.sweep_report import print_report
from pforce.records.ledger import Ledger
from pforce.records.parts import cell_parts
from pforce.storage import Storage
from pforce.training import Record
from pforce.trial.task import CurvePoint, Done, Handed, Progress, Started, Train
from tests.benchmarks.records import sweep
from tests.results.conftest import known

POINTS = 4
"""Points of the curve of each trial."""
TABLES = ("metrics", "params", "tags", "runs", "latest_metrics")
"""Tables of MLflow's database whose rows are counted."""


class Sleeper:
    """What a worker does with a task here: it sleeps, reports points, and writes the records of the cell."""

    seconds = 1.0

    def __init__(self, seat: object) -> None:
        self.seat = seat

    def __call__(self, handed: Handed, report: Callable[[Any], Any], newest: object = None) -> None:
        """Carry out a task."""
        task = handed.task
        assert isinstance(task, Train)
        at = (task.id, handed.attempt)
        report(Started(*at))
        images = task.experiment.training.images
        for number in range(1, POINTS + 1):
            time.sleep(self.seconds / POINTS)
            seen = images * number // POINTS
            report(CurvePoint(*at, Record(number, seen, 1.0 / number, 0.5, 0.5, 1.0, 1e-3, 100.0, time=time.time())))
        report(Progress(*at, "sampling", 0.5))
        parts = cell_parts(task.experiment, task.inputs)
        numbers = {"fd/openmoji": 5.0, "val/loss": 0.2, "difficulty/pearson_t0.20": 0.5}
        known(Work(parts, ()), numbers, Ledger(Storage.open(task.storage)))
        report(Done(*at, metrics=numbers, seconds=self.seconds))


def sleeping(config: dict[str, Any]) -> None:
    """A worker on Ray, as `pforce.executors.support.entry.alone`."""
    import torch

    from pforce.executors.support import worker
    from pforce.trial.perform import Seat

    worker.Performer = Sleeper  # type: ignore[assignment, misc]
    worker.serve(config["meeting"], config["seat"], Seat(torch.device("cpu"), 1, 1.0))


def slept(config: dict[str, Any]) -> None:
    """A trial of a bare Tune loop."""
    for number in range(1, POINTS + 1):
        time.sleep(Sleeper.seconds / POINTS)
        tune.report({"loss": 1.0 / number})


def used() -> float:
    """CPU seconds of this process, all threads."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def megabytes() -> float:
    """Memory that this process has now."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def rows(folder: Path) -> int:
    """Rows of MLflow's database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return sum(database.execute(f"select count(*) from {table}").fetchone()[0] for table in TABLES)


def ours(trials: int, folder: Path) -> dict[str, float]:
    """Figures of a sweep."""
    from pforce.executors import tune as executor

    executor.alone = sleeping
    quiet, found = make_console(quiet=True), {}
    begun = time.perf_counter()
    planned = plan(sweep(trials), Options(storage=str(folder), cpus_per_trial=1), quiet)
    found["plan s"] = time.perf_counter() - begun
    keep_sweep(planned)
    before, cpu, begun = megabytes(), used(), time.perf_counter()
    code = execute(planned, quiet, "tune")
    assert code == 0, planned.failed
    found["run s"] = time.perf_counter() - begun
    found["driver ms per trial"] = 1e3 * (used() - cpu) / trials
    found["MB more"] = megabytes() - before
    found["MLflow rows per trial"] = rows(folder) / trials
    found["MLflow rows per s"] = rows(folder) / found["run s"]
    begun = time.perf_counter()
    print_report(planned, quiet)
    found["table s"] = time.perf_counter() - begun
    found["html MB"] = (folder / "many.html").stat().st_size / 2**20
    begun = time.perf_counter()
    assert len(results.runs(folder)) == trials
    found["read s"] = time.perf_counter() - begun
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pforce.cli", "runs", "--storage", str(folder)], check=True, capture_output=True
    )
    found["pforce runs s"] = time.perf_counter() - begun
    found["files"] = sum(1 for path in (folder / "records").rglob("*.json"))
    return found


def bare(trials: int, folder: Path) -> dict[str, float]:
    """Figures of a Tune loop that keeps its processes."""
    tuner = tune.Tuner(
        tune.with_resources(slept, {"cpu": 1}), param_space={"number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    )  # fmt: skip
    before, cpu, begun = megabytes(), used(), time.perf_counter()
    assert not tuner.fit().errors
    found = {"run s": time.perf_counter() - begun, "driver ms per trial": 1e3 * (used() - cpu) / trials}
    return {**found, "MB more": megabytes() - before}


def measured(trials: int, nodes: int, cores: int, seconds: float, *, alone: bool) -> dict[str, float]:
    """Figures of a sweep or a bare loop on a cluster of its own. Called in a process of its own.

    Args:
        cores: trials at once on each node.
        alone: measure the bare loop.
    """
    Sleeper.seconds = seconds
    begun = time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cores)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        started = time.perf_counter() - begun
        with tempfile.TemporaryDirectory() as folder:
            found = (bare if alone else ours)(trials, Path(folder))
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {"trials": trials, "nodes": nodes, "cluster s": started, **found}


def growth(lines: Sequence[dict[str, float]], by: str) -> str:
    """Exponent of each figure with the number of trials or nodes; empty for a single line."""
    sizes = np.log([line[by] for line in lines])
    if len(set(sizes)) < 2:
        return ""
    names = [name for name in lines[0] if name not in ("trials", "nodes") and all(line[name] > 0 for line in lines)]
    slopes = {name: np.polyfit(sizes, np.log([line[name] for line in lines]), 1)[0] for name in names}
    return f"growth with {by}: " + ", ".join(f"{name} ^{slope:.2f}" for name, slope in slopes.items())


def main() -> None:
    """Print figures, a line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[125, 500, 2000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[4])
    parser.add_argument("--cores", type=int, default=2, help="trials at once on each node")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each trial sleeps")
    parser.add_argument("--bare", action="store_true", help="measure a bare Tune loop instead")
    a = parser.parse_args()
    sizes = [(trials, nodes) for nodes in a.nodes for trials in a.trials]
    if len(sizes) == 1:
        print(json.dumps(measured(*sizes[0], a.cores, a.seconds, alone=a.bare)), flush=True)
        return
    lines = []
    for trials, nodes in sizes:
        words = ["--trials", trials, "--nodes", nodes, "--cores", a.cores, "--seconds", a.seconds]
        command = [sys.executable, "-m", "tests.benchmarks.scale", *map(str, words), *(["--bare"] if a.bare else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
        print(", ".join(f"{name} {value:.4g}" for name, value in lines[-1].items()), flush=True)
    for by in ("trials", "nodes"):
        if text := growth(lines, by):
            print(text)


if __name__ == "__main__":
    main()
