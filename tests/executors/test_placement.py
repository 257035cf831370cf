"""Random clusters and random tasks: what is placed fits, all of it at once; what is refused could never run. Oracle: a
packing of workers onto nodes, one by one. A few for real."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.util import placement_group, remove_placement_group

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.base.machine import machine_cores
from pforce.executors.executor import make
from pforce.executors.support.placement import Node, place
from pforce.executors.support.setup import Setup
from pforce.orchestration.axes import Axis
from pforce.orchestration.launch import execute
from pforce.records.ledger import Ledger
from pforce.storage import Storage
from tests.orchestration.conftest import make_plan, small_sweep
from tests.support.starts import Start

TYPES = st.sampled_from([(), ("H100",), ("A100-40G",), ("A100-80G",), ("NVIDIA H100 80GB HBM3",)])
NODES = st.lists(st.builds(Node, st.integers(1, 16), st.integers(0, 8).map(float), TYPES), min_size=1, max_size=5)
GPUS = st.sampled_from([None, 0.0, 0.1, 1 / 7, 0.25, 1 / 3, 0.5, 0.6, 1.0, 2.0, 3.0, 9.0])


class Packed:
    """A node that is being filled."""

    def __init__(self, node: Node) -> None:
        self.cpus, self.gpus = node.cpus, [1.0] * int(node.gpus)

    def take(self, cpus: int, gpus: float) -> bool:
        """Place a worker, if it fits: whole GPUs, or a share of one."""
        if self.cpus < cpus:
            return False
        need, share = (int(gpus), 0.0) if gpus >= 1 else (0, gpus)
        free = [number for number, left in enumerate(self.gpus) if left > 1 - 1e-9]
        if need > len(free):
            return False
        if share:
            shared = next((number for number, left in enumerate(self.gpus) if left > share - 1e-9), None)
            if shared is None:
                return False
            self.gpus[shared] -= share
        for number in free[:need]:
            self.gpus[number] = 0.0
        self.cpus -= cpus
        return True

    def room(self, cpus: int, gpus: float) -> int:
        """How many workers still fit."""
        copy, found = Packed(Node(self.cpus, 0.0)), 0
        copy.gpus = list(self.gpus)
        while copy.take(cpus, gpus):
            found += 1
        return found


def trials_that_fit(nodes: list[Node], cpus: int, gpus: float, workers: int, *, spread: bool, most: int = 200) -> int:
    packed, trials = [Packed(node) for node in nodes], 0
    while trials < most:
        order = sorted(packed, key=lambda node: -node.room(cpus, gpus))
        left = workers
        for node in order:
            while left and node.take(cpus, gpus):
                left -= 1
                if spread:
                    break
        if left:
            return trials
        trials += 1
    return trials


WANTED = st.fixed_dictionaries({
    "cpus": st.none() | st.integers(1, 20), "gpus": GPUS, "workers": st.integers(1, 6), "spread": st.booleans(),
    "exactly": st.booleans(),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(nodes=NODES, cells=st.integers(1, 30), wanted=WANTED)
def test_what_is_placed_fits_and_what_is_refused_could_not_run(nodes, cells, wanted):
    gpus = wanted["gpus"]
    gpus = gpus if gpus is not None else (1.0 if max(node.gpus for node in nodes) >= 1 else 0.0)
    of_task = {"workers": wanted["workers"], "spread": wanted["spread"]}
    fitting = trials_that_fit(nodes, wanted["cpus"] or 1, gpus, **of_task)
    if fitting == 0 or (wanted["exactly"] and fitting < cells):
        with pytest.raises(ConfigError, match=r"\A[^\n]*(node|cluster)[^\n]*\Z"):  # one line, which says what there is
            place(cells, nodes=nodes, **wanted)
        return
    found = place(cells, nodes=nodes, **wanted)
    assert found.concurrent == min(cells, fitting) >= 1
    assert trials_that_fit(nodes, found.cpus, found.gpus, **of_task) >= found.concurrent
    share = found.resources.get("GPU", 0.0)  # as Ray counts it, in whole parts of 10,000
    assert share <= found.gpus + 1e-12
    assert share * 10_000 == pytest.approx(round(share * 10_000), abs=1e-6)
    assert round(share * 10_000) * int(1 / gpus + 1e-9 if 0 < gpus < 1 else 1) <= 10_000 * max(1.0, gpus)


@settings(max_examples=200, deadline=None)
@given(nodes=NODES, more=NODES, cells=st.integers(1, 30), wanted=WANTED)
def test_more_nodes_are_never_fewer_tasks(nodes, more, cells, wanted):
    wanted = {**wanted, "gpus": wanted["gpus"] or 0.0, "exactly": False}  # by default, nodes with GPUs change the task
    try:
        before = place(cells, nodes=nodes, **wanted)
    except ConfigError:
        return
    after = place(cells, nodes=[*nodes, *more], **wanted)
    assert after.concurrent >= before.concurrent
    assert before.room([*nodes, *more]) >= before.room(nodes) >= before.concurrent  # of the same cores per worker


@settings(max_examples=200, deadline=None)
@given(
    nodes=NODES, wanted=WANTED, name=st.sampled_from(["H100", "h100", "A100", "A100-80G", "a100 40g", "L4", "100", " "])
)
def test_a_type_of_gpu_is_respected_or_refused_with_those_that_there_are(nodes, wanted, name):
    """Oracle: the cluster without the nodes that have no such GPU."""
    types = {each for node in nodes if node.gpus for each in node.gpu_types}
    named = {
        "h100": [each for each in types if "H100" in each], "a100": [each for each in types if "A100" in each],
        "a100-80g": types & {"A100-80G"}, "a100 40g": types & {"A100-40G"},
    }.get(name.lower(), [])  # fmt: skip
    named = {"H100"} if name.lower() == "h100" and "H100" in types else named  # its own name comes first
    if len(named) != 1 or wanted["gpus"] == 0:
        with pytest.raises(ConfigError, match=rf"--gpu-type {name}: ") as refused:
            place(4, nodes=nodes, gpu_type=name, **wanted)
        assert wanted["gpus"] == 0 or not types or all(each in str(refused.value) for each in (named or types))
        return
    (only,) = named
    own = [node for node in nodes if only in node.gpu_types]
    try:
        expected = place(4, nodes=own, **wanted)
    except ConfigError:
        with pytest.raises(ConfigError):
            place(4, nodes=nodes, gpu_type=name, **wanted)
        return
    found = place(4, nodes=nodes, gpu_type=name, **wanted)
    assert (found.concurrent, found.cpus, found.gpus) == (expected.concurrent, expected.cpus, expected.gpus)
    assert found.resources == {**expected.resources, f"accelerator_type:{only}": 0.001}
    assert found.room(nodes) >= found.concurrent


@settings(max_examples=200, deadline=None)
@given(
    node=st.builds(Node, st.integers(1, 16), st.integers(0, 8).map(float)), count=st.integers(1, 6),
    workers=st.integers(1, 12), gpus=st.sampled_from([0.0, 0.5, 1.0, 2.0]), spread=st.booleans(),
)  # fmt: skip
def test_whole_nodes_are_shared_by_no_two_tasks(node, count, workers, gpus, spread):
    """Oracle: nodes that are filled worker by worker, as Ray counts them, until none fits any more."""
    nodes, wanted = [node] * count, {"cpus": None, "gpus": gpus, "workers": workers, "spread": spread}
    room = min(Packed(node).room(1, gpus), 1 if spread else workers)
    even = [each for each in range(1, room + 1) if workers % each == 0 and workers // each <= count]
    if not even:
        with pytest.raises(ConfigError, match=r"gpus-per-trial|no node has|--whole-nodes"):
            place(99, nodes=nodes, whole_nodes=True, **wanted)
        return
    found = place(99, nodes=nodes, whole_nodes=True, **wanted)
    assert found.per_node is not None
    taken = workers // found.per_node
    assert found.concurrent == count // taken >= 1
    cpus = found.resources["CPU"]
    assert found.cpus <= cpus
    assert found.per_node * cpus <= node.cpus < (found.per_node + 1) * cpus, (
        "a node holds its task's workers and no more"
    )
    assert found.per_node == max(even), "on as few nodes as can be"


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (1.5, r"--gpus-per-trial 1.5: must be a whole number, or a share of one GPU"),
        (0.00001, r"--gpus-per-trial 1e-05"),
    ],
)
def test_a_gpu_and_a_half_is_on_no_gpu(gpus, message):
    """Ray places no such worker, and would wait for ever."""
    with pytest.raises(ConfigError, match=message):
        place(1, nodes=[Node(8, 4.0)], cpus=None, gpus=gpus)


def test_whole_nodes_are_alike():
    with pytest.raises(
        ConfigError, match=r"--whole-nodes: needs nodes that are alike, and these have 8 cores, 16 cores"
    ):
        place(1, nodes=[Node(8, 0.0), Node(16, 0.0)], cpus=None, gpus=None, whole_nodes=True)
    with pytest.raises(ConfigError, match=r"no room for so many on 3 nodes of its own \(--whole-nodes\)"):
        place(1, nodes=[Node(8, 2.0)] * 2, cpus=None, gpus=None, workers=6, whole_nodes=True)
    head, node = Node(4, 0.0), Node(32, 8.0)
    found = place(9, nodes=[head, node, node, node], cpus=None, gpus=None, workers=16, whole_nodes=True)
    assert (found.concurrent, found.cpus, found.per_node) == (1, 4, 8)  # the head has no GPU


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("local", {"cpus": 1_000}, r"--cpus-per-trial 1000: must be between 1 and \d+"),
        ("local", {"gpus": 99.0}, "--gpus-per-trial 99"),
        ("processes", {"cpus": 1_000}, "--cpus-per-trial 1000"),
        ("processes", {"tasks": 1_000, "exactly": True}, "1000 workers at once: the cluster has room for"),
        ("tune", {"cpus": 1_000}, "--cpus-per-trial 1000"),
        ("groups", {"workers": 500}, "--workers 500: the cluster has no room for so many at once"),
        ("groups", {"workers": 2, "spread": True}, r"on different nodes \(--spread\)"),
        ("tune", {"gpu_type": "H100"}, "--gpu-type H100: no node has a GPU"),
        ("processes", {"gpu_type": "H100", "gpus": 0.0}, "--gpu-type H100: --gpus-per-trial is 0"),
    ],
)
def test_a_task_larger_than_any_node_is_refused_in_one_message(ray_cluster, tmp_path, name, fields, message):
    executor = make(name, Setup(**{"name": "large", "tasks": 1, "scratch": tmp_path, **fields}))
    with pytest.raises(ConfigError, match=message), executor:
        pass


@pytest.fixture
def one_core():
    """What `taskset -c 0` does, to this process."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.skipif(machine_cores() < 2, reason="one core is all that this machine has")
@pytest.mark.process
def test_on_one_core_of_several_one_trial_runs_at_a_time_and_the_sweep_says_so(one_core, tmp_path):
    console = make_console(file=io.StringIO(), width=200)
    sigmas = Axis("timesteps.sigma", (0.2, 0.6))
    assert execute(make_plan(small_sweep(sigmas), tmp_path), console, "processes") == DONE
    said = (
        f"2 trials, 1 at a time, each on 1 core, in all on 1 of {machine_cores()} cores (this process may use no others"
    )
    assert said in console.file.getvalue()
    first, second = sorted((each.started, each.finished) for each in Ledger(Storage.open(tmp_path)).all("training"))
    assert first[1] <= second[0], "the second training waits for the first"


@pytest.mark.skipif(machine_cores() < 2, reason="one core is all that this machine has")
@pytest.mark.process
def test_ray_that_is_started_here_has_the_cores_that_this_process_may_use():
    """Oracle: the nodes as Ray counts them."""
    code = """
import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pforce.executors.support.start import start_ray
print([node.cpus for node in start_ray("local")])
"""
    said, _ = Start(["-c", code]).communicate(timeout=120)
    assert said.splitlines()[-1] == "[1]", said


def test_an_executor_without_its_library_names_the_cure(monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("ray", "pforce.executors"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ray", None)
    from pforce.executors.executor import make as anew

    with pytest.raises(ConfigError, match=r"--executor tune: needs ray, which is not installed.*--executor processes"):
        anew("tune", Setup("s", 1))


@pytest.mark.timeout(300)
def test_sockets_and_logs_are_this_users_own(ray_cluster):
    """Ray's default folder is shared by all users of a machine, who could put files into a job's working directory."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    folder = Path(f"/tmp/pforce-{os.getuid()}")
    assert session.is_relative_to(folder)
    found = folder.lstat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.getuid(), 0o700)


def test_workers_without_room_wait_say_so_and_begin(ray_cluster, tmp_path, monkeypatch):
    """Another job holds the cluster's cores; once they are free they begin. (Groups: test_groups.py.)"""
    import threading
    import time

    import ray

    from pforce.executors.support import seats

    monkeypatch.setattr(seats, "WAITING_SECONDS", 1.0)
    console = make_console(file=io.StringIO(), width=200)
    other = placement_group([{"CPU": 2}])
    ray.get(other.ready())
    said = "waiting for room for 1 worker of 1 core: the cluster has 0 cores"

    def free() -> None:
        while said not in console.file.getvalue():
            time.sleep(0.1)
        remove_placement_group(other)

    threading.Thread(target=free, daemon=True).start()
    plan = make_plan(small_sweep(), tmp_path, cpus_per_trial=1)
    assert execute(plan, console, "tune") == DONE
