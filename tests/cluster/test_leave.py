"""`cluster/container/leave`, a pod's preStop hook, on a real Ray cluster of a head and a worker that are apart as pods
are, each in process and network namespaces of its own. Oracle: what the job itself hears, as it writes it down.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.support.manifests import ROOT

LEAVE = ROOT / "cluster" / "container" / "leave"
NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net")
JOB = """
    import signal, sys, time
    import ray
    from ray._private.state import state

    def said(word):
        with open("heard", "a") as file:
            print(word, file=file)

    def stop(*_):
        said("SIGTERM")
        time.sleep(4)  # longer than Ray's own patience of 3 s
        said("checkpoint")
        sys.exit(4)

    @ray.remote(num_cpus=1)
    class Trainer:
        def ready(self): return True

    ray.init(address="auto")
    trainer = Trainer.remote()
    ray.get(trainer.ready.remote())
    signal.signal(signal.SIGTERM, stop)
    said("training")
    while not state.get_draining_nodes():
        time.sleep(0.2)
    said("drained")
    time.sleep(2)
    ray.kill(trainer)
    time.sleep(600)
"""
WORKER = """
    set -eu
    ip link set lo up
    until ip link set inner up 2> /dev/null; do sleep 0.1; done
    ip address add 10.77.0.2/24 dev inner
    ip route add default via 10.77.0.1
    until [ -e started ]; do sleep 0.1; done
    ray start --address 10.77.0.1:6379 --num-cpus 1 > worker 2>&1
    until grep -q training heard 2> /dev/null; do sleep 0.1; done
    date +%s > drain; RAY_ADDRESS=10.77.0.1:6379 {leave} worker 60 > leaving 2>&1; date +%s > drained
    sleep 600
"""
HEAD = """
    set -eu
    ip link set lo up
    {leave} worker 60; echo "nothing there: $?" > idle
    {namespaces} bash worker.sh &
    sleep 1
    ip link add outer type veth peer name inner
    ip link set inner netns $!
    ip address add 10.77.0.1/24 dev outer
    ip link set outer up
    ip route add default via 10.77.0.2
    ray get-auth-token --generate > /dev/null 2>&1
    ray start --head --num-cpus 0 --temp-dir {folder}/r --disable-usage-stats > head 2>&1
    touch started
    for attempt in $(seq 60); do
      ray job submit --no-wait --submission-id j -- python job.py > submitted 2>&1 && break
      sleep 0.5
    done
    for attempt in $(seq 400); do [ -s drained ] && break; sleep 0.1; done
    date +%s > before; {leave} head 60; date +%s > after
    ray job status j > status 2>&1 || true
"""


def seconds(file: Path) -> int:
    return int(file.read_text())


def permitted() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True, timeout=30).returncode == 0


@pytest.mark.drill
@pytest.mark.timeout(200)
def test_a_job_is_told_and_has_time():
    if not permitted():
        pytest.skip("no namespaces for a test here (unshare and ip, as root)")
    folder = Path(tempfile.mkdtemp(prefix="l"))  # Ray's sockets are below it: their paths must be short
    try:
        (folder / "job.py").write_text(textwrap.dedent(JOB))
        places = {"leave": LEAVE, "folder": folder, "namespaces": " ".join(NAMESPACES)}
        (folder / "worker.sh").write_text(textwrap.dedent(WORKER).format(**places))
        script = textwrap.dedent(HEAD).format(**places)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        environment = {
            **os.environ,
            "PATH": path,
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
        }
        environment.pop("RAY_ADDRESS", None)
        done = subprocess.run(
            [*NAMESPACES, "bash", "-c", script], cwd=folder, env=environment, check=False, capture_output=True,
            text=True, timeout=150,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (folder / "idle").read_text() == "nothing there: 0\n"
        heard = (folder / "heard").read_text().split()
        assert heard == ["training", "drained", "SIGTERM", "checkpoint"], (folder / "submitted").read_text()
        for name, least in (("drain", 2), ("before", 4)):
            waited = seconds(folder / {"drain": "drained", "before": "after"}[name]) - seconds(folder / name)
            assert least <= waited < 60, "as long as there is work, not for the whole time"
        assert "stopped" in (folder / "status").read_text()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
