"""The loop itself: whom it answers what, and what it says of those who say nothing."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from pforce.base.console import STOPPED, make_console
from pforce.orchestration import drive
from pforce.orchestration.display import Display
from pforce.orchestration.launch import execute
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.trials import Trials, entries
from pforce.trial.failures import Failure
from pforce.trial.task import Answer, Done, Failed, Handed, Idle, Progress, Started, Warned
from tests.orchestration.conftest import make_plan, small_sweep
from tests.support.trap import set_trap, trapped


def loop_of(storage: Path, *, retries: int = 2) -> tuple[drive._Drive, Recorder, Console]:
    console = make_console(file=io.StringIO(), width=200)
    plan = make_plan(small_sweep(), storage)
    recorder = Recorder(None, Display(console, "sweep", 1), entries(plan, {}))
    return drive._Drive(Trials(plan, recorder), recorder, drive.RetryPolicy(retries), None), recorder, console


def handed(loop: drive._Drive) -> Handed:
    found = loop.hand()
    assert isinstance(found, Handed)
    return found


def test_a_worker_whose_task_was_given_to_another_is_told_to_stop_and_not_listened_to(tmp_path):
    loop, recorder, console = loop_of(tmp_path)
    task, first = handed(loop)
    assert loop.listen(Started(task.id, first)) is Answer.GO_ON
    assert loop.listen(Failed(task.id, first, Failure("worker died", "gone"))) is Answer.GO_ON
    assert handed(loop) == Handed(task, 2)
    for late in (
        Progress(task.id, first, "training", 0.5), Warned(task.id, first, "late"), Done(task.id, first),
        Failed(task.id, first, Failure("diverged", "late")), Started("another", 1),
    ):  # fmt: skip
        assert loop.listen(late) is Answer.CHECKPOINT_AND_STOP, late
    assert recorder.finished == set()
    assert "late" not in console.file.getvalue()
    assert loop.listen(Progress(task.id, 2, "training", 0.5)) is Answer.GO_ON
    loop.stop("SIGTERM", 10)
    assert loop.listen(Progress(task.id, 2, "training", 0.6)) is Answer.CHECKPOINT_AND_STOP
    assert loop.hand() is Idle.END


@pytest.mark.parametrize(
    ("reason", "attempts"),
    [("worker died", 3), ("out of memory", 3), ("ValueError", 3), ("diverged", 1), ("bad data", 1)],
)
def test_what_may_be_the_machines_fault_is_tried_again(tmp_path, reason, attempts):
    loop, recorder, _ = loop_of(tmp_path)
    tried = 0
    while isinstance(found := loop.hand(), Handed):
        tried += 1
        assert found.attempt == tried
        loop.listen(Failed(found.task.id, found.attempt, Failure(reason, "so")))
    assert tried == attempts
    assert recorder.failed == dict.fromkeys(recorder.failed, reason)
    assert len(recorder.failed) == 1


def test_a_full_disk_stops_everything(tmp_path):
    loop, _, _ = loop_of(tmp_path)
    task, attempt = handed(loop)
    with pytest.raises(drive.DiskFull, match="no space"):
        loop.listen(Failed(task.id, attempt, Failure("disk full", "no space")))


@pytest.mark.process
@pytest.mark.timeout(300)
def test_a_worker_that_says_nothing_is_named_and_can_be_stopped(tmp_path, monkeypatch):
    """It hangs in its third step: after a while that is said, once. SIGTERM gives it its grace, and ends it."""
    monkeypatch.setattr(drive, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(drive, "GRACE_SECONDS", 2.0)
    set_trap(tmp_path / "traps", "hang", 3, "hang")
    plan = make_plan(Sweep("s", trapped(40, tmp_path / "traps"), ()), tmp_path / "runs", cpus_per_trial=1)
    console = make_console(file=io.StringIO(), width=200)

    def stop() -> None:
        while "no report from its worker" not in console.file.getvalue():
            time.sleep(0.1)
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    started = time.monotonic()
    assert execute(plan, console, "processes") == STOPPED
    said = console.file.getvalue()
    assert said.count("no report from its worker") == 1
    assert "Stopped by SIGTERM" in said
    assert time.monotonic() - started < 200
    assert not multiprocessing.active_children()
