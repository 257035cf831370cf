"""Drill (g): the same command twice at once. Real processes; oracle: one training of each cell, one run of each."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE
from pforce.tracking import default_uri
from pforce.training.curve import segments
from tests.faults.drills import moments
from tests.faults.driver import STEPS
from tests.faults.test_tracking import POINTS, Driver, curves, drivers  # noqa: F401  # a fixture

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]


def trained(storage: Path) -> dict[str, list[tuple[int, int]]]:
    """Training → first and last images seen of the pieces in which its curve was written."""
    found = {}
    for folder in storage.glob("trainings/*"):
        spans = [path.name.split(".")[0].split("-") for path in segments(folder)]
        found[folder.name] = [(int(first), int(last)) for first, last in spans]
    return found


def test_two_drivers_share_the_work_of_a_sweep(tmp_path, drivers):  # noqa: F811
    """The second begins at a random moment of the first: each cell is trained by one of them, and shown once."""
    storage, uri = tmp_path / "runs", default_uri(tmp_path / "runs")
    first = Driver(storage, uri)
    drivers.append(first)
    first.wait_until(lambda: first.step() >= 5)
    time.sleep(moments("drivers", 0, 20)[0] / 10)
    second = Driver(storage, uri)
    drivers.append(second)
    assert [driver.wait() for driver in drivers] == [DONE, DONE], first.log.read_text() + second.log.read_text()
    several = trained(storage)
    assert len(several) == 2
    for spans in several.values():
        assert all(before < after for (_, before), (after, _) in itertools.pairwise(spans)), spans
        assert (spans[0][0], spans[-1][1]) == (POINTS[0], POINTS[-1])
    frame = results.runs(uri)
    assert frame["status"].tolist() == ["FINISHED"] * 2
    assert frame["parent"].nunique() == 1
    assert list(curves(uri).values()) == [POINTS] * 2


def test_who_waits_names_for_whom_and_goes_on_when_that_one_is_killed(tmp_path, drivers):  # noqa: F811
    """The first one is held, so that the second comes to wait for it; then it is killed."""
    storage, uri = tmp_path / "runs", default_uri(tmp_path / "runs")
    first = Driver(storage, uri)
    drivers.append(first)
    first.wait_until(lambda: first.step() >= 5)
    first.hold.touch()
    second = Driver(storage, uri, **{"PFORCE_TEST_NO_HOLD": "1"})
    drivers.append(second)
    named = f"waiting for {os.environ.get('USER', 'root')} on {socket.gethostname()} (process {first.process.pid})"
    second.wait_until(lambda: named in " ".join(second.log.read_text().split()))
    assert second.step() >= STEPS, "it did what it could before"
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert second.wait() == DONE, second.log.read_text()
    assert results.runs(uri)["status"].tolist() == ["FINISHED"] * 2
    assert list(curves(uri).values()) == [POINTS] * 2


def test_a_driver_that_is_stopped_for_a_while_and_continued(tmp_path, drivers):  # noqa: F811
    """SIGSTOP to the driver alone: its workers go on without it. Another driver ends the sweep meanwhile; continued,
    the first ends it, too: nothing was trained twice, and each cell is one run."""
    storage, uri = tmp_path / "runs", default_uri(tmp_path / "runs")
    first = Driver(storage, uri, PFORCE_TEST_EXECUTOR="processes")
    drivers.append(first)
    first.wait_until(lambda: first.step() >= 5)
    os.kill(first.process.pid, signal.SIGSTOP)
    second = Driver(storage, uri)
    drivers.append(second)
    assert second.wait() == DONE, second.log.read_text()
    assert first.process.poll() is None, "it is stopped"
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait() == DONE, first.log.read_text()
    several = trained(storage)
    assert len(several) == 2
    for spans in several.values():
        assert all(before < after for (_, before), (after, _) in itertools.pairwise(spans)), spans
    assert results.runs(uri)["status"].tolist() == ["FINISHED"] * 2
    assert list(curves(uri).values()) == [POINTS] * 2
