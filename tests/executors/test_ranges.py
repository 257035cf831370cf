"""Large drawings are shared in ranges of images. Oracle: the same drawing by one undisturbed worker, bit for bit."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from pforce.base.console import make_console
from pforce.executors.executor import Workforce
from pforce.orchestration import sample
from pforce.orchestration.sample import run_job
from pforce.sampling import LookAhead
from pforce.trial.jobs import Job, drawn_batches
from pforce.trial.source import load_source
from tests.orchestration.processes import processes, raylets

pytestmark = pytest.mark.timeout(600)
CONSOLE = make_console(width=160)


def workers_of(executor: str) -> list[int]:
    """Processes that carry out tasks for this one."""
    if executor == "processes":
        return [process.pid for process in multiprocessing.active_children()]
    ours = raylets()
    return [pid for pid, command, parent in processes() if command.startswith(b"ray::ImplicitFunc") and parent in ours]


@pytest.mark.parametrize("executor", ["tune"])  # how processes are lost is in test_drills.py
def test_a_lost_worker_costs_one_range(ray_cluster, trained, tmp_path, executor, monkeypatch):
    """Two workers share 240 images; one is killed by SIGKILL in the middle. What it was at is drawn again, no more."""
    source = load_source(trained)
    sampler = LookAhead(num_function_evaluations=12)
    job = Job(
        str(source.path), source.sha256, sampler, classes=(0, 1), count=240, storage=str(tmp_path / "killed"), batch=4
    )
    retried, killed = [], []
    retry = sample.Recorder.retry

    def noted(recorder, task, *arguments):
        retried.append(task.id)
        retry(recorder, task, *arguments)

    monkeypatch.setattr(sample.Recorder, "retry", noted)

    def kill() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not killed:
            if list((tmp_path / "killed").glob("drawings/*/images/*.npz")):
                killed.append(workers_of(executor)[0])
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    spent = run_job(job, CONSOLE, Workforce(executor, 2))
    thread.join()
    assert killed
    assert len(retried) <= 1, "one that died between two ranges had none"
    assert spent.images == 240
    alone = dataclasses.replace(job, storage=str(tmp_path / "alone"))
    run_job(alone, CONSOLE)
    for disturbed, plain in zip(drawn_batches(job), drawn_batches(alone), strict=True):
        assert np.array_equal(disturbed["images"], plain["images"])
