"""Drill (b): nodes of a cluster are lost, others come, it grows, its GPU is shared. Logical nodes on this host,
each with a raylet of its own; real processes, real SIGKILL. Oracles: the same training by one worker, undisturbed; the
times in the records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from ray.cluster_utils import Cluster

from pforce import results
from pforce.base.console import DONE, USAGE_ERROR, make_console
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import plan
from pforce.records.ledger import Ledger
from pforce.storage import Storage
from pforce.tracking import Tracker, default_uri
from pforce_experiments.sweeps.ltg_grid import Arguments, sweep
from tests.faults.drills import moments, newest_step
from tests.faults.noticed import steps_in
from tests.orchestration.processes import processes
from tests.support.starts import Start, completed

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]
ROOT = Path(__file__).resolve().parents[2]
BATCH = 64
SCRIPT = (str(ROOT / "sweeps" / "ltg_grid.py"),)
SMALL = [
    "--set", "model.depth=1", "--set", "model.width=16", "--set", "model.heads=2", "--set", "evaluation.images=8",
    "--set", "evaluation.held_out_images=16", "--set", "evaluation.label_images=16", "--set",
    "evaluation.reference_images=16", "--set", "sampler.num_function_evaluations=2", "--set",
    "training.checkpoint_every=10", "--m", "0.7", "--sigma", "0.2",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(openmoji_folder: Path) -> Iterator[Cluster]:
    """A head without cores, where the drivers are; each test adds nodes, and takes them away."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield found
    finally:
        found.shutdown()


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[list[Any]]:
    """Two nodes of one core, and those that a test adds to the list."""
    found = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield found
    for node in found:
        cluster.remove_node(node, allow_graceful=False)


def lose(cluster: Cluster, nodes: list[Any], node: Any) -> None:
    """Kill a node's raylet, and with it all that runs there."""
    cluster.remove_node(node, allow_graceful=False)
    nodes.remove(node)


class Drill:
    """A sweep of one cell as a process."""

    def __init__(
        self, storage: Path, steps: int, log_every: int, *options: str, script: tuple[str, ...] = SCRIPT
    ) -> None:
        self.storage, self.steps, self.log_every = storage, steps, log_every
        self.log = storage.with_suffix(".log")
        command = [
            *script, *SMALL, "--set", f"training.images={steps * BATCH}",
            "--set", f"training.log_every={log_every}", "--storage", str(storage), *options,
        ]  # fmt: skip
        self.process = Start(command, log=self.log)

    def wait(self, seconds: float = 250) -> None:
        assert self.process.wait(timeout=seconds) == DONE, self.log.read_text()

    def wait_for_step(self, step: int) -> None:
        while not any(newest_step(folder) >= step for folder in self.storage.glob("trainings/*")):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def wait_for_logged(self, step: int) -> None:
        """Wait until a step is in the log of an attempt."""
        while max(steps_in(self.storage), default=0) < step:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def wait_for_workers(self, raylets: set[int], title: bytes = b"ray::RayTrainWorker", count: int = 2) -> set[int]:
        """Wait until so many of these raylets run a worker; they are returned."""
        while True:
            found = {parent for _, command, parent in processes() if command.startswith(title) and parent in raylets}
            if len(found) >= count:
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def curve(self) -> dict[int, float]:
        """step → loss; every point of the curve, once."""
        uri = default_uri(self.storage)
        (run,) = results.runs(uri).to_dict("records")
        assert run["status"] == "FINISHED"
        history = Tracker(uri, artifacts=self.storage).client.get_metric_history(run["run_id"], "train/loss")
        assert len(history) == self.steps // self.log_every
        return {point.step // BATCH: point.value for point in history}


def at_once(storage: Path) -> list[int]:
    """How many trainings ran while each began, itself included, in their order."""
    times = sorted((each.started, each.finished) for each in Ledger(Storage.open(storage)).all("training"))
    return [sum(first <= begun < last for first, last in times) for begun, _ in times]


def address(cluster: Cluster) -> tuple[str, str]:
    return "--ray-address", cluster.address


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def one_worker(folder: Path) -> dict[int, float]:
    """The curve of one worker over 50 steps, without Ray."""
    arguments = tyro.cli(
        Arguments, args=[*SMALL, "--set", f"training.images={50 * BATCH}", "--set", "training.log_every=1"]
    )
    made = plan(sweep(arguments), Options(storage=str(folder), cpus_per_trial=1), make_console(quiet=True))
    assert execute(made, make_console(quiet=True), "local") == DONE
    (run,) = results.runs(made.options.uri).to_dict("records")
    return {
        point.step // BATCH: point.value
        for point in made.tracker.client.get_metric_history(run["run_id"], "train/loss")
    }


def test_two_workers_on_two_nodes_give_the_curve_of_one_and_outlive_them(cluster, nodes, tmp_path):
    """STRICT_SPREAD over two logical nodes: 1e-4 over 50 steps. Then, at a random moment, a node is removed and another
    one comes: the training goes on."""
    drill = Drill(tmp_path / "runs", 80, 1, "--workers", "2", "--spread", *address(cluster))
    (step,) = moments("nodes", 52, 72, count=1)
    drill.wait_for_step(step)
    own = {raylet(node) for node in nodes}
    assert drill.wait_for_workers(own) == own, "each worker lies on a node of its own"
    lose(cluster, nodes, nodes[step % 2])
    nodes.append(cluster.add_node(num_cpus=1))
    drill.wait()
    curve, expected = drill.curve(), one_worker(tmp_path / "one")
    assert list(curve) == list(range(1, 81))
    assert list(expected) == list(range(1, 51))
    assert [curve[step] for step in expected] == pytest.approx(list(expected.values()), abs=1e-4)
    assert "attempt 2 of 3 resumes from its last checkpoint" in drill.log.read_text()


def drain(cluster: Cluster, node: Any) -> None:
    """Announce that a node will be taken, as a provider of spot machines does."""
    command = [
        "drain-node", "--address", cluster.address, "--node-id", node.node_id, "--reason",
        "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "300",
    ]  # fmt: skip
    assert completed("-c", "from ray.scripts.scripts import main; main()", *command).returncode == 0


def test_a_node_that_will_be_taken_costs_no_step(cluster, nodes, tmp_path):
    """The node of the only training is drained: it stops at a checkpoint, and goes on at another node's worker."""
    drill = Drill(tmp_path / "runs", 60, 1, "--cpus-per-trial", "1", *address(cluster))
    drill.wait_for_logged(10)
    (at,) = drill.wait_for_workers({raylet(node) for node in nodes}, b"ray::ImplicitFunc", count=1)
    (taken,) = [node for node in nodes if raylet(node) == at]
    drain(cluster, taken)
    drill.wait()
    said, steps = drill.log.read_text(), steps_in(drill.storage)
    assert "goes on elsewhere from where it was" in said
    assert "attempt 2" not in said, "it counts as no failure"
    assert sorted(steps) == list(range(1, 61)), "no step is done twice"
    assert len(list(drill.storage.glob("trainings/*/attempts/*.log"))) == 2


def test_a_cluster_that_grows_during_a_sweep_is_used(cluster, tmp_path):
    """One core and four trainings; while the first of them runs, a second core comes."""
    found = [cluster.add_node(num_cpus=1)]
    cluster.wait_for_nodes(timeout=90)  # until the cluster has noticed that those of earlier tests are gone
    try:
        drill = Drill(tmp_path / "runs", 300, 100, "--seeds", "4", *address(cluster))
        drill.wait_for_step(10)
        found.append(cluster.add_node(num_cpus=1))
        drill.wait()
    finally:
        for node in found:
            cluster.remove_node(node, allow_graceful=False)
    said = drill.log.read_text()
    assert "4 trials, 1 at a time, each on 1 core" in said
    assert "the cluster has grown to 3 nodes: 2 at a time" in said  # the head, without cores, is one
    assert max(at_once(drill.storage)) == 2, said


def test_two_trainings_share_a_gpu(cluster, tmp_path):
    """Half a GPU each: never three of the three at once, though there are three cores."""
    node = cluster.add_node(num_cpus=3, num_gpus=1, resources={"accelerator_type:H100": 1})
    try:
        options = ("--seeds", "3", "--gpus-per-trial", "0.5", "--cpus-per-trial", "1", "--gpu-type", "h100")
        module = ("-m", "tests.faults.on_shares")
        drill = Drill(tmp_path / "runs", 150, 50, *options, *address(cluster), script=module)
        drill.wait()
        refused = Drill(tmp_path / "none", 150, 50, "--gpu-type", "A100", *address(cluster))
        assert refused.process.wait(timeout=200) == USAGE_ERROR, refused.log.read_text()
    finally:
        cluster.remove_node(node, allow_graceful=False)
    assert "3 trials, 2 at a time, each on 1 core and 0.5 H100 GPU" in drill.log.read_text()
    assert max(at_once(drill.storage)) == 2
    assert "--gpu-type A100: no node has such a GPU; there are H100" in refused.log.read_text()
    assert not (refused.storage / "trainings").exists(), "no worker was started"
