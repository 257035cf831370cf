"""Signals at random moments of a training, in each kind of executor; `noticed.py` sends any number of them."""

from __future__ import annotations

import signal
import time

import pytest

from pforce.base.console import STOPPED
from tests.faults.drills import moments
from tests.faults.noticed import checkpoint_in, command, round_of, steps_in, undisturbed
from tests.support.starts import Start

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def expected(openmoji_folder, tmp_path_factory):
    """The undisturbed table."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), "local")


@pytest.mark.parametrize(
    ("name", "executor", "times"), [("SIGHUP", "local", 2), ("SIGUSR1", "processes", 2), ("SIGTERM", "tune", 1)]
)
def test_no_step_is_done_twice(expected, tmp_path, name, executor, times):
    (step,) = moments(f"{name} {executor}", 5, 60, count=1)
    heard = round_of(tmp_path / "round", name, executor, step=step, times=times, expected=expected)
    assert heard.is_good, heard


def test_a_notice_while_starting_measuring_or_ending_ends_nothing(expected, tmp_path):
    """Before its first step there is nothing to save; a measurement goes on, and so does the table at the end."""
    storage, log = tmp_path / "runs", tmp_path / "log"
    call = Start([*command(storage, "local"), "--set", "sampler.num_function_evaluations=60"], log=log)
    while not storage.exists():
        call.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    while max(steps_in(storage), default=0) < 80 and call.poll() is None:
        time.sleep(0.05)
    while call.poll() is None:
        call.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    assert call.wait(300) == 0, log.read_text()
    assert "s in all" in log.read_text()
    assert sorted(steps_in(storage)) == list(range(1, 81))


def test_a_closed_terminal_is_ignored_where_the_shell_says_so(tmp_path):
    """As `nohup` does. Then SIGTERM stops it, at a checkpoint."""
    storage, log = tmp_path / "runs", tmp_path / "log"
    code = "import runpy, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = sys.argv[1:]; " \
           "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip
    call = Start(["-c", code, *command(storage, "local")], log=log)
    while max(steps_in(storage), default=0) < 5 and call.poll() is None:
        time.sleep(0.05)
    call.send_signal(signal.SIGHUP)
    reached = max(steps_in(storage))
    while max(steps_in(storage)) < reached + 3 and call.poll() is None:
        time.sleep(0.05)
    call.send_signal(signal.SIGTERM)
    assert call.wait(100) == STOPPED, log.read_text()
    assert checkpoint_in(storage) == max(steps_in(storage)) > reached
