"""Several processes at one page, and mirrors that are killed. Oracle: each run there once and whole at the end."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pforce import results
from pforce.executors.processes import STARTS
from pforce.records.provenance import user
from pforce.storage import Storage
from pforce.tracking import Mirror, Page, Shown, Tracker, artifacts, default_uri
from pforce.tracking import mirror as mirrors
from tests.tracking.cells import CELLS, keyed, name_of, sqlite_mirror, tables

pytestmark = pytest.mark.timeout(300)


SEED, KILLS = int(os.environ.get("PFORCE_DRILL_SEED", "0")), int(os.environ.get("PFORCE_DRILL_KILLS", "3"))


def _show(folder: Path, cells: tuple[str, ...]) -> None:
    mirror = sqlite_mirror(folder)
    (folder / "begun").touch()
    page = mirror.page("grid")
    page.show(keyed(page, *cells))


@pytest.mark.process
def test_three_processes_at_once_make_each_run_once(tmp_path):
    """With a store that is not there yet."""
    cells = tuple(f"{number:032x}" for number in range(250))
    several = [STARTS.Process(target=_show, args=(tmp_path, cells)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(timeout=200)
        assert process.exitcode == 0
    frame = results.runs(default_uri(tmp_path))
    assert sorted(frame["fingerprint"]) == sorted(cells)
    assert set(frame["status"]) == {"FINISHED"}
    names = {experiment.name for experiment in mlflow.MlflowClient(default_uri(tmp_path)).search_experiments()}
    assert names == {"Default", "grid"}


@pytest.mark.process
def test_a_mirror_killed_at_random_moments_is_caught_up(tmp_path):
    """SIGKILL, again and again, to a process that shows 2,000 cells; at the end each run is there once and whole."""
    cells = tuple(f"{number:032x}" for number in range(2000))
    killed, chosen = 0, random.Random(SEED)
    for _ in range(KILLS):
        process = STARTS.Process(target=_show, args=(tmp_path, cells))
        process.start()
        while process.is_alive() and not (tmp_path / "begun").exists():
            time.sleep(0.01)
        process.join(chosen.random() * 0.4)
        killed += process.is_alive()
        process.kill()
        process.join()
        (tmp_path / "begun").unlink()
    print(f"{killed} kills")
    assert killed
    _show(tmp_path, cells)
    frame = results.runs(default_uri(tmp_path))
    assert sorted(frame["fingerprint"]) == sorted(cells)
    assert set(frame["status"]) == {"FINISHED"}
    expected = tables(default_uri(tmp_path), cells[0])
    for cell in cells[1::200]:
        assert {table: len(rows) for table, rows in tables(default_uri(tmp_path), cell).items()} == {
            table: len(rows) for table, rows in expected.items()
        }


def test_a_mirror_killed_between_any_two_writes_is_caught_up(tmp_path, monkeypatch):
    """Stopped after each call that changes the store, or before the first; afterwards everything is there once."""
    picture, write = tmp_path / "samples.png", artifacts.write
    picture.write_bytes(b"png")

    class StoppedError(BaseException):
        pass

    def show(folder: Path, stop: int, *, api: bool) -> int:
        """Calls that change the store, up to the stop."""
        mirror, calls = sqlite_mirror(folder), 0
        if api:
            mirror.database = None

        def counted(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                if calls == stop:
                    raise StoppedError
                calls += 1
                return function(*args, **kwargs)

            return call

        changing = ("create_experiment", "create_run", "log_batch", "log_artifact", "set_terminated", "set_tag",
                    "update_run")  # fmt: skip
        for name in changing:
            monkeypatch.setattr(mirror.tracker.client, name, counted(getattr(mirror.tracker.client, name)))
        monkeypatch.setattr(artifacts, "write", counted(write))
        if mirror.database is not None:
            for name in ("insert", "tag"):
                monkeypatch.setattr(mirror.database, name, counted(getattr(mirror.database, name)))
        page = mirror.page("grid")
        page.show({key: each.with_files([picture]) for key, each in keyed(page, *CELLS[:2]).items()})
        return calls

    for api in (False, True):
        whole = show(tmp_path / f"whole-{api}", 10**6, api=api)
        assert whole > 3
        expected = tables(default_uri(tmp_path / f"whole-{api}"), CELLS[0])
        for stop in range(whole):
            folder = tmp_path / f"{api}-{stop}"
            with pytest.raises(StoppedError):
                show(folder, stop, api=api)
            show(folder, 10**6, api=api)
            assert len(results.runs(default_uri(folder))) == 2
            assert tables(default_uri(folder), CELLS[0]) == expected, f"stopped after {stop} calls"
            client = mlflow.MlflowClient(default_uri(folder))
            for run_id in results.runs(default_uri(folder))["run_id"]:
                assert [file.path for file in client.list_artifacts(run_id)] == ["samples.png"]


def test_whoever_makes_a_page_waits_for_another_one(tmp_path):
    """Who holds the lease is named."""

    def say(line: str) -> None:
        said.append(line)
        lease.release()

    said: list[str] = []
    mirror = sqlite_mirror(tmp_path, say)
    with mirror.alone("grid") as lease:
        mirror.page("grid")
    assert f"process {os.getpid()}" in said[0]
    assert "showing runs in MLflow" in said[0]


def test_runs_that_another_process_makes_meanwhile(any_mirror, request, monkeypatch):
    """Between looking for them and making them: both end with all of them, each once."""
    page, other = (any_mirror.page(name_of(request)) for _ in range(2))
    look = page.find

    def find(keys: Any, prefer: str = "") -> Any:
        found = look(keys, prefer)
        if not others:
            others.append(other.show(keyed(other, *CELLS[:2])))
        return found

    others: list[Shown] = []
    monkeypatch.setattr(page, "find", find)
    assert page.show(keyed(page, *CELLS)) == Shown(made=1, there=2)
    assert others == [Shown(made=2)]
    assert sorted(results.runs(any_mirror.tracker.uri, page.name)["fingerprint"]) == sorted(CELLS)


def test_two_storages_that_begin_a_page_of_one_name_at_once(server, tmp_path, monkeypatch):
    first, second = (Mirror(Tracker(server.uri, artifacts=tmp_path), Storage.open(tmp_path / n)) for n in "ab")
    made = first._made

    def later(*names: str) -> Any:
        if not pages:
            pages.append(second.page("raced"))
        return made(*names)

    pages: list[Page] = []
    monkeypatch.setattr(first, "_made", later)
    mine = first.page("raced")
    assert mine.client.get_experiment(mine.experiment_id).name == f"raced ({user()})-{first.identity[: mirrors.SUFFIX]}"
    assert mine.experiment_id != pages[0].experiment_id
