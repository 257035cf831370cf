"""`pforce doctor` against real faults: processes, files, sockets, and a real Ray cluster of two nodes with a token."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pforce.base import machine
from pforce.executors.support import node, probe
from pforce.executors.support.placement import Node
from pforce.orchestration.doctor import cluster, machines, software, stores
from pforce.orchestration.doctor.check import Check, checked
from pforce.orchestration.doctor.diagnose import _tracking
from pforce.storage import Storage
from pforce.tracking import Tracker, default_uri
from tests.support.clock import PATIENCE
from tests.support.ports import free_port

TOKEN = "5a" * 32
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
c = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
c.add_node(num_cpus=1)
print("ADDRESS", c.address, flush=True)
sys.stdin.read()
c.shutdown()
"""


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code, and checks by name."""
    code = (
        "import sys; from pforce.cli import _run; c = _run(sys.argv[1:]); assert 'ray' not in sys.modules; sys.exit(c)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json", *arguments],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, **environment},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    report = json.loads(done.stdout)
    by_name: dict[str, list[dict[str, str]]] = {}
    for check in report["checks"]:
        by_name.setdefault(check["name"], []).append(check)
    assert report["ok"] == (done.returncode == 0)
    return done.returncode, by_name


def states(checks: dict[str, list[dict[str, str]]], state: str) -> set[str]:
    return {name for name, found in checks.items() if any(check["state"] == state for check in found)}


@pytest.mark.process
def test_a_sound_machine_is_told_without_starting_ray(tmp_path):
    storage = tmp_path / "runs"
    code, checks = doctor("--storage", str(storage), "--workers", "1")
    assert code == 0
    names = ("Python", "packages", "GPU", "NCCL", "attention", "torchvision", "storage", "MLflow store", "workers")
    assert {
        *names,
        "process starts",
        "place",
        "file system",
        "file creation",
        "whole files",
        "file locks",
        "quota",
        "proxy",
        "home",
        "temporary files",
        "room for files",
        "CPU",
        "shared memory",
        "free disk",
        "open files",
        "data cache",
    } <= set(checks)
    assert "only this machine was looked at" in checks["Ray cluster"][0]["found"]
    assert list(storage.iterdir()) == []  # no database is made by looking


@pytest.mark.process
def test_each_fault_is_told_with_its_cure_and_hides_no_other(tmp_path):
    storage, port = tmp_path / "file", free_port()
    storage.write_text("not a folder")
    code, checks = doctor(
        "--storage", str(storage), "--tracking-uri", f"http://user:secret@127.0.0.1:{port}", "--workers", "5000",
        PFORCE_CACHE=str(storage / "cache"), RAY_ADDRESS=f"127.0.0.1:{free_port()}",
    )  # fmt: skip
    assert code == 2
    assert states(checks, "problem") == {"storage", "MLflow store", "data cache", "Ray cluster"}
    assert "secret" not in json.dumps(checks)
    assert f"nothing answers at 127.0.0.1:{port}" in checks["MLflow store"][0]["found"]
    assert all(check["cure"] for found in checks.values() for check in found if check["state"] != "ok")
    code, checks = doctor("--storage", str(tmp_path / "runs"), "--workers", "5000")
    assert (code, states(checks, "problem")) == (2, {"workers"})


def test_the_tracking_store(tmp_path):
    assert "the first run makes it" in stores.tracking(default_uri(tmp_path), tmp_path).found
    tracker = Tracker(default_uri(tmp_path), artifacts=tmp_path)
    tracker.client.create_experiment("grid")
    good = stores.tracking(tracker.uri, tmp_path)
    assert (good.state, good.found.endswith("1 sweep")) == ("ok", True)
    (tmp_path / "broken.db").write_text("not a database")
    assert stores.tracking(f"sqlite:///{tmp_path}/broken.db", tmp_path).state == "problem"


def test_a_server_that_accepts_and_never_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        uri = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        found = stores.tracking(uri, tmp_path, limit=2.0)
    assert (found.state, time.monotonic() - started < 8 * PATIENCE) == ("problem", True)
    assert "no answer within 2 s" in found.found
    assert "secret" not in found.found


def test_what_slows_the_start_of_processes_is_told(tmp_path, monkeypatch):
    """The package that JupyterLab brings, here an empty one of its name."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert software.process_starts().state == "ok"
    (tmp_path / "rfc3987_syntax.py").touch()
    importlib.invalidate_caches()
    found = software.process_starts()
    assert (found.state, "pip uninstall rfc3987-syntax" in found.cure) == ("warning", True)


def test_a_check_that_crashes_is_a_problem():
    def crash() -> Check:
        raise ZeroDivisionError("of mine")

    (found,) = checked("mine", crash)
    assert (found.name, found.state) == ("mine", "problem")
    assert "ZeroDivisionError: of mine" in found.found


# --- over machines ---------------------------------------------------------------------------------------------


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """Facts of this machine."""
    return node.facts(str(tmp_path))


def test_small_shared_memory(facts):
    small = {**facts, "memory": 16 * 2**30, "shm": 64 * 2**20}  # docker's default
    found = machines.shared_memory({"a": {**facts, "shm": facts["memory"]}, "b": small})
    assert (found.state, "on b" in found.found, "--shm-size=5g" in found.cure) == ("warning", True, True)
    assert machines.shared_memory({"a": {**facts, "memory": 16 * 2**30, "shm": 6 * 2**30}}).state == "ok"
    assert machines.shared_memory({"a": {**facts, "shm": None}}).state == "warning"


def test_disk_open_files_and_versions(facts, tmp_path):
    full = {**facts, "free": {"/tmp": 5 * 2**30, str(tmp_path): 2**20}}
    assert [check.state for check in machines.disk({"a": full})] == ["warning", "problem"]
    few = {**facts, "open_files": (1024, 1024)}
    assert machines.open_files({"a": few}).state == "ok"
    assert machines.open_files({"a": few, "b": facts}).state == "warning"
    assert [check.state for check in machines.versions({"a": facts, "b": facts}, facts)] == ["ok"]
    (found,) = machines.versions({"a": facts, "b": {**facts, "pforce": None}}, facts)
    assert (found.state, "none on b" in found.found) == ("problem", True)


@pytest.mark.parametrize("nested", [False, True])
def test_a_container_s_cpu_and_memory_limit(tmp_path, nested):
    """Version 2 of control groups; the tighter of the group's own limit and of those around it."""
    own = tmp_path / "own"
    own.write_text("0::/slice/job\n" if nested else "0::/\n")
    root = tmp_path / "cgroup"
    (root / "slice" / "job").mkdir(parents=True)
    (root / "cpu.max").write_text("400000 100000\n")
    (root / "slice" / "cpu.max").write_text("150000 100000\n")
    (root / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    (root / "slice" / "memory.max").write_text("1073741824\n")
    assert machine.cpu_quota(root, str(own)) == (1.5 if nested else 4.0)
    assert (machine.memory_bytes(root, str(own)) == 2**30) == nested
    most = 1 if nested else 4  # 1.5 cores run one process at a time
    assert machine.usable_cores(root, str(own)) == min(most, machine.machine_cores())


def test_a_container_s_cpu_limit_in_version_1(tmp_path, facts):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(tmp_path, str(tmp_path / "none")) == 0.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.cpu_quota(tmp_path, str(tmp_path / "none")) is None
    assert machines.cpus({"a": {**facts, "cpus": 64, "cpu_quota": 4.0}}).state == "warning"
    assert machines.cpus({"a": {**facts, "cpus": 4, "cpu_quota": 4.0}}).state == "ok"


def test_two_folders_are_not_one(tmp_path):
    """What stands for a storage that is local to each node."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    assert node.leave(str(there), "mark", "nonce") is None
    assert node.finds(str(there), "mark", "nonce", wait=0)
    assert not node.finds(str(here), "mark", "nonce", wait=0.2)
    assert not node.finds(str(there), "mark", "another", wait=0)
    assert node.leave(str(tmp_path / "nowhere"), "mark", "nonce") == "is not there"
    assert not (tmp_path / "nowhere").exists()
    shared = {"label": "a", "storage_error": None, "storage_shared": True}
    assert cluster.shared_storage([shared], here).state == "ok"
    apart = cluster.shared_storage([shared, {**shared, "label": "b", "storage_shared": False}], here)
    assert (apart.state, "on b is another folder" in apart.found, "NFS" in apart.cure) == ("problem", True, True)
    missing = cluster.shared_storage([shared, {**shared, "label": "b", "storage_error": "is not there"}], here)
    assert (missing.state, "b (is not there)" in missing.found) == ("problem", True)


@pytest.mark.parametrize(("offset", "state"), [(0.9, "ok"), (-2.0, "warning"), (29.0, "warning"), (-40.0, "problem")])
def test_clocks(offset, state):
    nodes = [{"label": n, "clock_offset": o, "round_trip": 0.002} for n, o in (("a", 0.001), ("b", offset))]
    found = cluster.clocks(nodes)
    assert found.state == state
    assert state == "ok" or found.found.startswith(f"b is {offset:+.1f} s off")


def test_a_node_that_cannot_be_reached():
    nodes = [{"label": "a", "connect_seconds": 0.01, "connect_error": ""},
             {"label": "b", "connect_seconds": None, "connect_error": "timed out"}]  # fmt: skip
    assert cluster.rendezvous(nodes[:1]).state == "ok"
    found = cluster.rendezvous(nodes)
    assert (found.state, "b (timed out)" in found.found) == ("problem", True)
    assert cluster.room([Node(1, 0.0), Node(1, 0.0)], 2).state == "ok"
    assert cluster.room([Node(1, 0.0), Node(1, 0.0)], 3).state == "problem"


@pytest.mark.process
def test_what_runs_on_a_node_needs_no_pforce_there():
    import ray

    code = (
        "import sys, pickle; sys.modules['pforce'] = None; i = pickle.load(sys.stdin.buffer)(); print(i.facts('/tmp'))"
    )

    def there(travels: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-c", code], input=travels, capture_output=True, timeout=60, check=False)

    assert there(pickle.dumps(node.Inspector)).returncode != 0  # by reference
    for module in probe.SENT:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        done = there(ray.cloudpickle.dumps(node.Inspector))
    finally:
        for module in probe.SENT:
            ray.cloudpickle.unregister_pickle_by_value(module)
    assert done.returncode == 0, done.stderr
    assert b"'cache': None" in done.stdout


# --- a cluster -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A cluster of two nodes on this host that wants a token: its address, and the token's file."""
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(TOKEN)
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
                   "RAY_USAGE_STATS_ENABLED": "0"}  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("ADDRESS")), "")
        assert line, "the cluster did not start"
        yield line.split()[1], token
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


@pytest.mark.process
@pytest.mark.timeout(400)
def test_every_node_of_a_cluster_is_looked_at(guarded, tmp_path):
    address, token = guarded
    storage = tmp_path / "runs"
    code, checks = doctor(
        "--storage", str(storage), "--ray-address", address, "--workers", "2",
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token),
    )  # fmt: skip
    assert code == 0, checks
    assert "2 nodes, 2 CPUs" in checks["Ray cluster"][0]["found"]
    for name in ("Ray token", "versions", "shared storage", "clocks", "network", "workers", "home", "temporary files"):
        assert checks[name][0]["state"] == "ok"
    for name in ("file creation", "file locks"):  # by two processes here, then by all nodes and this machine
        assert [check["state"] for check in checks[name]] == ["ok", "ok"]
    assert "this machine and" in checks["file creation"][1]["found"]
    assert "2 nodes" in checks["shared storage"][0]["found"]
    assert list(storage.iterdir()) == []  # nothing is left there


@pytest.mark.process
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["wrong", "none sent", "missing"])
def test_a_token_that_the_cluster_refuses(guarded, tmp_path, kind):
    """Soon, where Ray itself tries for 20 s and says `Failed to connect`."""
    address, token = guarded
    wrong = tmp_path / "wrong"
    wrong.write_text("00" * 32)
    environment = {
        "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
        "none sent": {"RAY_AUTH_TOKEN_PATH": str(token)},
        "missing": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")},
    }[kind]
    code, checks = doctor("--storage", str(tmp_path / "runs"), "--ray-address", address, **environment)
    name = "Ray token" if kind == "missing" else "Ray cluster"
    assert (code, states(checks, "problem")) == (2, {name})
    found = checks[name][-1]
    told = {
        "wrong": f"refuses the token (the one of RAY_AUTH_TOKEN_PATH ({wrong}) was sent)",
        "none sent": "refuses the token (none was sent)",
        "missing": "there is no token",
    }
    assert told[kind] in found["found"]
    assert "RAY_AUTH_MODE=token" in found["cure"]
    assert TOKEN not in json.dumps(checks)


def test_a_bucket_without_a_tracking_store_hides_no_other_check():
    check = _tracking(Storage.open("s3://bucket/runs"), None)
    assert check.state == "problem"
    assert "tracking_uri = None" in check.found
    assert "--tracking-uri" in check.cure
