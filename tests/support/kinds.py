"""Kinds of tests: `unit` starts no process, `process` starts some or carries out whole sweeps in its own, `drill` kills
some.

A test is `unit` unless its file, itself or one of its fixtures says otherwise; one that starts a process all the same
fails. Files that take longest come first, so that the last ones to end are short.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from pforce.executors.processes import STARTS

TESTS = Path(__file__).resolve().parents[1]
KINDS = {
    "unit": "starts no process; all of them take less than two minutes",
    "process": "starts processes (commands, workers, servers, a Ray cluster), or carries out whole sweeps in its own",
    "drill": "kills processes, damages files, takes away disks, nodes and stores, and goes on",
}
FIXTURES = {"ray_cluster", "server", "own_server", "smoke", "head", "cluster"}
"""Fixtures that start processes, or need what processes have left."""
SERVERS = ("python", "ray", "mlflow", "postgres", "gcs_server", "raylet")
"""Beginnings of the names of programs that count as processes; git, df and the like do not."""
BUDGETS: dict[str, int] = {
    "orchestration/test_reproduce.py": 170,
    "cluster/test_slurm.py": 260,
    "faults/test_driver.py": 160,
    "executors/test_drills.py": 120,
    "faults/test_fuzz.py": 50,
    "faults/test_secrets.py": 60,
    "orchestration/test_jobs.py": 120,
    "orchestration/test_remote_storage.py": 100,
    "distributed/test_training.py": 70,
    "faults/test_tracking.py": 60,
    "faults/test_nodes.py": 170,
    "faults/test_noticed.py": 110,
    "metrics/test_fidelity.py": 50,
    "metrics/test_adm.py": 25,
    "test_several_detectors.py": 40,
    "faults/test_write_points.py": 50,
    "orchestration/test_doctor.py": 50,
    "orchestration/test_places.py": 20,
    "orchestration/test_run.py": 45,
    "faults/test_stop.py": 45,
    "faults/test_failing_trials.py": 40,
    "tracking/test_live.py": 40,
    "tracking/test_sweep_run.py": 70,
    "tracking/test_shared_server.py": 25,
    "orchestration/test_groups.py": 35,
    "orchestration/test_sampler_sweep.py": 45,
    "faults/test_full_disk.py": 60,
    "test_cli.py": 30,
    "test_sample_cli.py": 50,
    "data/test_openmoji.py": 30,
    "records/test_lease.py": 30,
    "records/test_losses.py": 30,
    "executors/test_ranges.py": 25,
    "executors/test_worker.py": 25,
    "faults/test_workers.py": 60,
    "tracking/test_mirror_processes.py": 25,
    "records/test_damage.py": 25,
    "records/test_packs.py": 20,
    "records/test_exchange.py": 20,
    "test_evaluate_cli.py": 25,
    "test_evaluate_memorisation.py": 25,
    "executors/test_placement.py": 45,
    "training/test_loop.py": 25,
    "orchestration/test_apart.py": 30,
    "orchestration/test_study.py": 20,
    "orchestration/test_search.py": 80,
    "faults/test_search_killed.py": 60,
    "orchestration/test_growth.py": 45,
    "orchestration/test_rungs.py": 60,
    "orchestration/test_along.py": 35,
    "faults/test_two_drivers.py": 40,
    "results/test_looks.py": 25,
    "test_storage.py": 20,
    "cluster/test_mlflow.py": 40,
    "cluster/test_leave.py": 45,
}
"""File → seconds that its tests may take on an idle core; 15 for all others."""
DEFAULT_BUDGET = 15
_started: list[str] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "subprocess.Popen":
        _started.append(Path(os.fsdecode(arguments[0])).name)  # type: ignore[arg-type]
    elif event == "os.fork":
        _started.append("python")


def watch() -> None:
    """Note each process that is started from now on."""
    sys.addaudithook(_watch)
    start = STARTS.Process.start  # of multiprocessing there is no such event

    def noted(process: object) -> None:
        _started.append("python")
        start(process)  # type: ignore[arg-type]

    STARTS.Process.start = noted  # type: ignore[method-assign]


def started() -> list[str]:
    """Programs of this project that were started since the last call."""
    found = [name for name in _started if name.startswith(SERVERS)]
    _started.clear()
    return found


def kind_of(item: pytest.Item) -> str:
    """The kind that a test is of."""
    for kind in ("drill", "process"):
        if item.get_closest_marker(kind):
            return kind
    return "process" if FIXTURES & set(getattr(item, "fixturenames", ())) else "unit"


def budget_of(path: str) -> int:
    """Seconds that a file may take.

    Args:
        path: as in BUDGETS, below `tests/`.
    """
    return BUDGETS.get(path, DEFAULT_BUDGET)


def sort(items: list[pytest.Item]) -> None:
    """Mark each test with its kind, and put long files first; tests of one file stay together, in their order."""
    for item in items:
        item.add_marker(kind_of(item))
    items.sort(key=lambda item: -budget_of(str(item.path.relative_to(TESTS))))


def over_budget(seconds: Counter[str]) -> list[str]:
    """Lines about the files that took longer than they may."""
    return [
        f"{path}: {took:.0f} s, budget {budget_of(path)} s"
        for path, took in seconds.most_common()
        if took > budget_of(path)
    ]
