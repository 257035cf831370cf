"""Drill (a): a worker's process is killed in the middle of a training. Real processes, real SIGKILL.

Oracle: the same training undisturbed, bit for bit for one worker, 1e-4 for two.
"""

from __future__ import annotations

import pytest
from rich.console import Console

from pforce import results
from pforce.orchestration import groups, local, tune
from pforce.orchestration.launch import execute
from pforce.orchestration.sweep import Sweep
from pforce.terminal import DONE, SOME_FAILED
from tests.faults.drills import (
    Killer,
    moments,
    one_run,
    trial_processes,
)
from tests.orchestration.conftest import make_plan
from tests.training.conftest import tiny

pytestmark = pytest.mark.timeout(600)
STEPS = 200
EVERY = 5
"""Steps between points of the curve, and between checkpoints."""
CONSOLE = Console(quiet=True)
TUNE, TRAIN = b"ImplicitFunc", b"RayTrainWorker"


def drill(steps: int) -> Sweep:
    return Sweep("drill", tiny(steps, log_every=EVERY, checkpoint_every=EVERY), ())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, float]:
    plan = make_plan(drill(STEPS), tmp_path_factory.mktemp("undisturbed"), cpus_per_trial=1)
    assert execute(plan, CONSOLE, local.launch) == DONE
    return results.runs(plan.options.uri).iloc[0].to_dict()


def test_a_killed_worker_is_replaced(ray_cluster, tmp_path, undisturbed):
    """One worker, killed at two random moments: the trial goes on at its last checkpoint each time and gives the
    numbers of an undisturbed one, bit for bit, and every point of its curve once."""
    plan = make_plan(drill(STEPS), tmp_path, cpus_per_trial=1)
    killer = Killer(plan, lambda: trial_processes(TUNE), moments("worker", 5, 125))
    killer.start()
    assert execute(plan, CONSOLE, tune.launch) == DONE
    killer.over.set()
    assert len(killer.killed) == 2
    row, tags, steps = one_run(plan)
    assert (tags["pforce.attempts"], tags["pforce.retried"]) == ("3", "worker died; worker died")
    assert steps == list(range(EVERY, STEPS + 1, EVERY))
    for name in ("val/loss", "fd/openmoji", "difficulty/pearson_t0.60"):
        assert row[name] == undisturbed[name], name


def test_a_killed_worker_of_two_is_replaced(ray_cluster, tmp_path, undisturbed):
    """Either of two, at a random moment: the group ends, another one goes on at the last checkpoint. (Two moments, and
    nodes: test_nodes.py.)"""
    plan = make_plan(drill(STEPS), tmp_path, workers=2)
    killer = Killer(plan, lambda: trial_processes(TRAIN), moments("group", 5, 125, count=1))
    killer.start()
    assert execute(plan, CONSOLE, groups.launch) == DONE
    killer.over.set()
    assert len(killer.killed) == 1
    row, tags, steps = one_run(plan)
    assert (tags["pforce.attempts"], tags["pforce.retried"]) == ("2", "worker died")
    assert steps == list(range(EVERY, STEPS + 1, EVERY))
    assert row["val/loss"] == pytest.approx(undisturbed["val/loss"], abs=1e-3)


def test_a_worker_that_is_killed_each_time_is_a_failed_trial(ray_cluster, tmp_path):
    """With one further attempt: FAILED with its reason, and the sweep ends with a table that says so."""
    plan = make_plan(drill(40_000), tmp_path, retries=1, cpus_per_trial=1)
    killer = Killer(plan, lambda: trial_processes(TUNE), [1, 1])
    killer.start()
    assert execute(plan, CONSOLE, tune.launch) == SOME_FAILED
    killer.over.set()
    row, tags, _ = one_run(plan)
    assert (row["status"], row["reason"]) == ("FAILED", "worker died")
    assert tags["pforce.attempts"] == "2"
