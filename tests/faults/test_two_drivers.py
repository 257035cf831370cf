"""Drill (g): the same command twice at once. Real processes; oracle: one works, the other's message and exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pforce import results
from pforce.orchestration.hold import SweepHeld, only_driver
from pforce.storage import Storage
from pforce.terminal import STOPPED, USAGE_ERROR
from pforce.tracking import default_uri
from tests.faults.drills import moments, newest_step

pytestmark = pytest.mark.timeout(600)
COMMAND = [
    sys.executable, "-c", "from pforce.cli import main; main()", "train", "openmoji32_micro", "--model.depth", "1",
    "--model.width", "16", "--model.heads", "2", "--training.images", "640000", "--training.checkpoint-every", "10",
    "--training.log-every", "10", "--evaluation.images", "8", "--cpus-per-trial", "1",
]  # fmt: skip


def trial(storage: Path) -> Path:
    """The folder of its only training."""
    (folder,) = storage.glob("trainings/*")
    return folder


def test_the_second_driver_says_who_holds_the_sweep(tmp_path, openmoji_folder):
    """At two random moments of the first one's training, and after the first one was killed: nothing is left held."""
    storage = tmp_path / "runs"
    command = [*COMMAND, "--storage", str(storage)]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    again = None
    try:
        while not list(storage.glob("trainings/*/checkpoints/step_*")):
            assert first.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        for tenths in moments("drivers", 0, 20):
            time.sleep(tenths / 10)
            second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            assert first.poll() is None, "the first one ended too soon to show anything"
            assert second.returncode == USAGE_ERROR
            message = " ".join(second.stderr.split())
            for part in (f"process {first.pid} ", socket.gethostname(), "since 20", "train openmoji32_micro"):
                assert part in message
        os.kill(first.pid, signal.SIGKILL)
        first.wait(timeout=30)
        reached = newest_step(trial(storage))
        again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while newest_step(trial(storage)) == reached and again.poll() is None:
            time.sleep(0.1)
        again.terminate()
        said = again.communicate(timeout=300)[0]
        assert again.returncode == STOPPED, said
        assert newest_step(trial(storage)) > reached
    finally:
        for process in (first, again):
            if process is not None and process.poll() is None:
                process.kill()
    (run,) = results.runs(default_uri(storage)).to_dict("records")
    assert run["status"] == "KILLED"


def test_other_sweeps_of_the_storage_run_beside_it(tmp_path):
    place = Storage.open(tmp_path)
    with only_driver(place, "grid", "a" * 32, ["1" * 32, "2" * 32]):
        with only_driver(place, "grid", "b" * 32, ["3" * 32]):
            pass
        common = pytest.raises(SweepHeld, match="1 of its 2 cells are being run by process")
        with common, only_driver(place, "grid", "b" * 32, ["2" * 32, "3" * 32]):
            pass
        with only_driver(place, "another", "b" * 32, ["2" * 32]):
            pass
        with pytest.raises(SweepHeld, match=f"process {os.getpid()} "), only_driver(place, "grid", "a" * 32):
            pass
    with only_driver(place, "grid", "a" * 32):
        pass
