"""Stopping a real sweep with real signals, and going on. Oracle: the state of MLflow, the process table, the clock
of the issue (15 s), and the points of the loss curve."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from pforce import results
from pforce.base.console import DONE, STOPPED
from pforce.tracking import default_uri
from tests.support.clock import PATIENCE
from tests.support.starts import Start

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "sweeps" / "ltg_grid.py"
SECONDS_TO_STOP = 15
# One trial at a time, so that one is finished and one is running when the signal comes.
COMMAND = [
    str(SCRIPT), "--m", "0.7", "--sigma", "0.1", "0.2", "--cpus-per-trial", "2",
    "--set", "model.depth=1", "--set", "model.width=16", "--set", "model.heads=2", "--set", "training.images=3840",
    "--set", "training.checkpoint_every=5", "--set", "training.log_every=5", "--set", "evaluation.images=8",
    "--set", "evaluation.held_out_images=32", "--set", "evaluation.label_images=32",
    "--set", "evaluation.reference_images=32", "--set", "sampler.num_function_evaluations=2",
]  # fmt: skip


class Job:
    """The sweep as a process; its descendants carry a mark in their environment."""

    def __init__(self, storage: Path) -> None:
        self.mark = f"PFORCE_TEST_MARK={uuid.uuid4()}"
        key, value = self.mark.split("=")
        self.log = storage.parent / f"log-{value}"
        self.process = Start([*COMMAND, "--storage", str(storage)], env={**os.environ, key: value}, log=self.log)

    def alive(self) -> list[str]:
        """Commands of all processes with the mark."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (process / "environ").read_bytes()
                state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if marked and state != "Z":
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended while we looked
        return found

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def stop(self, number: signal.Signals) -> float:
        """Send the signal; seconds until the process and all its descendants are gone."""
        started = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout=SECONDS_TO_STOP * PATIENCE)
        assert code == STOPPED, self.log.read_text()
        while self.alive() and time.monotonic() - started < SECONDS_TO_STOP * PATIENCE:
            time.sleep(0.1)
        assert self.alive() == []
        return time.monotonic() - started


@pytest.fixture
def jobs(openmoji_folder) -> Iterator[list[Job]]:
    started: list[Job] = []
    yield started
    for job in started:
        if job.process.poll() is None:
            job.process.kill()


def test_sigterm_in_a_training_and_going_on(tmp_path, jobs):
    """One cell finished, one running: KILLED, nothing left behind; the same command ends the sweep."""
    storage = tmp_path / "runs"
    uri = default_uri(storage)
    job = Job(storage)
    jobs.append(job)

    def second_is_running() -> bool:
        return len(list(storage.glob("trainings/*/evaluations/*/samples.png"))) == 1 and (
            len({path.parents[1] for path in storage.glob("trainings/*/checkpoints/step_*")}) == 2
        )

    job.wait_until(second_is_running)
    assert job.stop(signal.SIGTERM) < SECONDS_TO_STOP * PATIENCE
    before = results.runs(uri).set_index("timesteps.sigma")
    assert before["status"].to_dict() == {0.1: "FINISHED", 0.2: "KILLED"}
    client = mlflow.MlflowClient(uri)
    assert client.get_run(before["parent"].iloc[0]).info.status == "KILLED"
    reached = max(
        int(path.name.removeprefix("step_"))
        for path in storage.glob(f"trainings/{before['training'][0.2]}/checkpoints/step_*")
    )

    again = Job(storage)
    jobs.append(again)
    assert again.process.wait(timeout=400) == DONE, again.log.read_text()
    after = results.runs(uri).set_index("timesteps.sigma")
    assert after["status"].to_dict() == {0.1: "FINISHED", 0.2: "FINISHED"}
    assert after["run_id"][0.1] == before["run_id"][0.1]
    assert after["run_id"][0.2] == before["run_id"][0.2]
    assert after["val/loss"][0.1] == before["val/loss"][0.1]
    assert after["parent"].nunique() == 1
    assert client.get_run(after["parent"].iloc[0]).info.status == "FINISHED"
    history = client.get_metric_history(after["run_id"][0.2], "train/loss")
    history.sort(key=lambda m: m.timestamp)
    steps = [m.step // 64 for m in history]
    repeated = [step for index, step in enumerate(steps) if step in steps[:index]]
    assert all(step > reached for step in repeated), "work before the checkpoint was done again"
    assert steps[-1] == 60


def test_ctrl_c_while_starting(tmp_path, jobs):
    """SIGINT as soon as the sweep starts its trials: the same clean end."""
    storage = tmp_path / "runs"
    job = Job(storage)
    jobs.append(job)
    job.wait_until(lambda: "at a time" in job.log.read_text())
    assert job.stop(signal.SIGINT) < SECONDS_TO_STOP * PATIENCE
    frame = results.runs(default_uri(storage))
    assert "RUNNING" not in set(frame.get("status", []))
    assert "resumes from here" in job.log.read_text()
