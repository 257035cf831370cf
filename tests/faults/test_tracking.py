"""The tracking server dies under a real sweep, and so does the driver. Oracle: MLflow's client at the end, and the
checkpoints that appear meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from pforce import results
from pforce.base.console import DONE
from pforce.tracking.live import CATCH_UP
from tests.faults.drills import moments
from tests.faults.driver import LOG_EVERY, STEPS
from tests.support.starts import Start
from tests.tracking.servers import MlflowServer

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]
POINTS = [16 * step for step in range(LOG_EVERY, STEPS + 1, LOG_EVERY)]
"""Images seen at each point of a cell's curve: 16 a step."""


class Driver:
    """The sweep as a process."""

    def __init__(self, storage: Path, uri: str, **environment: str) -> None:
        self.storage, self.log = storage, storage.with_suffix(f".{time.monotonic_ns()}.log")
        self.hold = storage / "hold"
        self.process = Start(
            ["-m", "tests.faults.driver", str(storage), uri], env={**os.environ, **environment}, log=self.log
        )

    def step(self) -> int:
        """Steps of all cells' newest checkpoints, added up."""
        newest: dict[Path, int] = {}
        for path in self.storage.glob("trainings/*/checkpoints/step_*"):
            newest[path.parent] = max(newest.get(path.parent, 0), int(path.name.removeprefix("step_")))
        return sum(newest.values())

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def wait(self) -> int:
        return self.process.wait(timeout=200)


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    started: list[Driver] = []
    yield started
    for driver in started:
        if driver.process.poll() is None:
            driver.process.kill()


@pytest.fixture
def own_server(tmp_path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def curves(uri: str) -> dict[str, list[int]]:
    """run → the steps of its loss, in order."""
    client = mlflow.MlflowClient(uri)
    found = {}
    for run in results.runs(uri)["run_id"]:
        points = client.get_metric_history(run, "train/loss")
        points.sort(key=lambda point: point.step)
        found[run] = [point.step for point in points]
    return found


def test_the_server_is_killed_twice_during_training_and_comes_back(own_server, tmp_path, drivers):
    """SIGKILL at two random steps; away until training is 20 steps further; back on its port and database."""
    driver = Driver(tmp_path / "runs", own_server.uri)
    drivers.append(driver)
    for number, moment in enumerate(moments("server", 5, 205), start=1):
        driver.wait_until(lambda moment=moment: driver.step() >= moment)
        own_server.kill()
        killed_at = driver.step()
        driver.wait_until(lambda at=killed_at: driver.step() >= at + 20)
        driver.hold.touch()
        driver.wait_until(lambda number=number: driver.log.read_text().count("has been away since") == number)
        own_server.start()
        driver.wait_until(lambda number=number: driver.log.read_text().count("is back after") == number)
        driver.hold.unlink()
    assert driver.wait() == DONE, driver.log.read_text()

    log = driver.log.read_text()
    assert log.count("has been away since") == 2
    assert log.count("is back after") == 2
    frame = results.runs(own_server.uri)
    assert frame["status"].tolist() == ["FINISHED"] * 2
    assert frame["fingerprint"].nunique() == 2
    assert list(curves(own_server.uri).values()) == [POINTS] * 2
    client = mlflow.MlflowClient(own_server.uri)
    (experiment,) = (e for e in client.search_experiments() if e.tags.get("pforce.name") == "drill")
    assert len(client.search_runs([experiment.experiment_id])) == 3, "two cells and the sweep, no orphan"
    for run in frame["run_id"]:
        assert {"samples.png", "uncertainty_maps.png"} <= {file.path for file in client.list_artifacts(run)}


def test_the_driver_is_killed_while_the_server_is_away(own_server, tmp_path, drivers):
    """The next call delivers what the first one had measured, goes on at its checkpoint, and makes no second run."""
    driver = Driver(tmp_path / "runs", own_server.uri)
    drivers.append(driver)
    driver.wait_until(lambda: driver.step() >= 20)
    own_server.kill()
    driver.wait_until(lambda: driver.step() >= 60)
    driver.hold.touch()
    driver.wait_until(lambda: "has been away since" in driver.log.read_text())
    driver.process.kill()
    driver.wait()
    driver.hold.unlink()
    own_server.start()

    again = Driver(tmp_path / "runs", own_server.uri)
    drivers.append(again)
    assert again.wait() == DONE, again.log.read_text()
    frame = results.runs(own_server.uri)
    assert frame["status"].tolist() == ["FINISHED"] * 2
    assert frame["fingerprint"].nunique() == 2
    assert list(curves(own_server.uri).values()) == [POINTS] * 2, "each point once, though some were trained twice"
    client = mlflow.MlflowClient(own_server.uri)
    (experiment,) = (e for e in client.search_experiments() if e.tags.get("pforce.name") == "drill")
    assert len(client.search_runs([experiment.experiment_id])) == 3


def test_a_server_that_does_not_come_back_ends_the_sweep_all_the_same(own_server, tmp_path, drivers):
    """All results are in the storage; the next call shows them and trains nothing."""
    driver = Driver(tmp_path / "runs", own_server.uri, PFORCE_FLUSH_SECONDS="1")
    drivers.append(driver)
    driver.wait_until(lambda: driver.step() >= 20)
    own_server.kill()
    assert driver.wait() == DONE, driver.log.read_text()
    log = driver.log.read_text()
    assert CATCH_UP in " ".join(log.split())
    assert results.runs(tmp_path / "runs")["status"].tolist() == ["FINISHED"] * 2
    evaluated = {
        path: path.stat().st_mtime for path in (tmp_path / "runs").glob("trainings/*/evaluations/*/samples.png")
    }
    assert len(evaluated) == 2

    own_server.start()
    again = Driver(tmp_path / "runs", own_server.uri)
    drivers.append(again)
    assert again.wait() == DONE, again.log.read_text()
    assert "2 distinct, 2 finished before" in again.log.read_text()
    assert results.runs(own_server.uri)["status"].tolist() == ["FINISHED"] * 2
    assert list(curves(own_server.uri).values()) == [POINTS] * 2
    assert evaluated == {path: path.stat().st_mtime for path in evaluated}
