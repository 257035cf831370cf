"""Tracking on a real sqlite database. Oracle: MLflow's own client reading it back."""

from __future__ import annotations

import os
import time

import mlflow
import pytest
import sqlalchemy

from pforce import results
from pforce.tracking import Tags, Tracker, TrackingError, default_uri, runs_frame, sqlite_path, sweep_names
from tests.support.starts import Start
from tests.tracking.writer import RunSpec, Writer


@pytest.fixture
def tracker(tmp_path) -> Writer:
    return Writer(default_uri(tmp_path), artifacts=tmp_path / "artifacts")


def spec(fingerprint: str, **params) -> RunSpec:
    return RunSpec(f"cell {fingerprint}", fingerprint, {"timesteps.m": 0.5, **params}, {"device": "cpu"})


def test_a_frame_has_a_row_a_trial_with_numbers_as_numbers(tracker):
    assert len(results.runs(tracker.uri)) == 0
    sweep = tracker.open_sweep("grid", "id", {})
    for index, truncation in enumerate(("reference", "exact")):
        run_id = tracker.open_trial(sweep, spec(str(index), seed=index, **{"timesteps.truncation": truncation}))
        for step in (1, 2):
            tracker.log(run_id, {"val/loss": 10.0 * index + step}, step=step)
        tracker.close(run_id, "FINISHED" if index else "FAILED")
    frame = results.runs(tracker.uri, "grid").sort_values("seed")
    assert list(frame["seed"]) == [0, 1]
    assert list(frame["timesteps.truncation"]) == ["reference", "exact"]
    assert list(frame["val/loss"]) == [2.0, 12.0]
    assert list(frame["status"]) == ["FAILED", "FINISHED"]
    assert len(results.runs(tracker.uri, "no such sweep")) == 0


def test_a_run_that_was_taken_up_again_is_one_row_with_its_last_values(tracker):
    """Logged again at the same steps, as after a checkpoint that is older than the last report."""
    sweep = tracker.open_sweep("grid", "id", {})
    run_id = tracker.open_trial(sweep, spec("a", seed=3))
    for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0)):
        tracker.log(run_id, {"train/loss": loss, "val/loss": 2 * loss}, step=step)
    tracker.tag(run_id, {Tags.REASON: "interrupted"})
    tracker.close(run_id, "KILLED")
    assert results.runs(tracker.uri)["reason"].tolist() == ["interrupted"]
    tracker.client.update_run(run_id, status="RUNNING")
    tracker.client.delete_tag(run_id, Tags.REASON)
    for step, loss in ((2, 4.0), (3, 3.0)):
        tracker.log(run_id, {"train/loss": loss}, step=step)
    tracker.log(run_id, {"val/loss": 1.0}, step=3)
    tracker.close(run_id, "FINISHED")
    (row,) = results.runs(tracker.uri).to_dict("records")
    assert (row["status"], row["seed"], row["train/loss"], row["val/loss"]) == ("FINISHED", 3, 3.0, 1.0)
    assert row["reason"] is None


def test_all_runs_of_a_fingerprint_are_there_and_one_is_chosen(tracker):
    """In two sweeps, as each has its own runs: one failed, one finished."""
    for name, status in (("first", "FINISHED"), ("second", "FAILED")):
        sweep = tracker.open_sweep(name, name, {})
        run_id = tracker.open_trial(sweep, spec("a"))
        tracker.log(run_id, {"val/loss": 1.0})
        tracker.close(run_id, status)
    frame = results.runs(tracker.uri)
    assert sorted(frame["sweep"]) == ["first", "second"]
    assert results.cells(frame)["sweep"].tolist() == ["first"]


def test_more_experiments_than_a_page(tracker, monkeypatch):
    """A store gives 1,000 experiments at once; here two, by its own paging."""
    for name in "abcde":
        sweep = tracker.open_sweep(name, name, {})
        tracker.close(tracker.open_trial(sweep, spec(name)), "FINISHED")
    whole = tracker.client.search_experiments
    monkeypatch.setattr(tracker.client, "search_experiments", lambda **k: whole(max_results=2, **k))
    assert sorted(runs_frame(tracker)["fingerprint"]) == list("abcde")


def test_more_parameters_and_metrics_than_a_call_takes(tracker):
    """MLflow's limits are 100 parameters and 1,000 metrics a call."""
    sweep = tracker.open_sweep("grid", "id", {})
    run_id = tracker.open_trial(sweep, spec("a", **{f"p{i}": i for i in range(150)}))
    tracker.log(run_id, {f"m{i}": float(i) for i in range(1200)})
    data = mlflow.MlflowClient(tracker.uri).get_run(run_id).data
    assert len(data.params) == 151
    assert len(data.metrics) == 1200


def test_a_store_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("not a database")
    with pytest.raises(TrackingError, match="cannot make"):
        Tracker(f"sqlite:///{tmp_path}/file/x/mlflow.db", artifacts=tmp_path)
    with pytest.raises(TrackingError, match="cannot be used"):
        Tracker(f"sqlite:///{tmp_path}/file", artifacts=tmp_path)


MAKE = """
import sys
from pathlib import Path
from pforce.tracking import Tracker
print("begins", flush=True)
Tracker(f"sqlite:///{sys.argv[1]}/mlflow.db", artifacts=Path(sys.argv[1]) / "artifacts")
"""


@pytest.mark.process
@pytest.mark.timeout(400)
def test_a_database_whose_making_is_killed_is_made_again(tmp_path, monkeypatch):
    """Real SIGKILLs at moments within the seconds that MLflow takes: there is a whole database or none."""
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))  # no empty one to copy
    for seconds in (0.2, 0.8, 1.4):
        process = Start(["-c", MAKE, str(tmp_path)])
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(seconds)
        process.kill()
        process.wait()
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", artifacts=tmp_path / "artifacts")
    tracker.client.create_experiment("made")
    assert tracker.client.get_experiment_by_name("made") is not None


@pytest.mark.parametrize("name", ["runs", "runs?a=b", "runs%41", "runsA", "ru ns", "ru\nns", "r@h:5"])
def test_a_storage_has_a_database_of_its_own_whatever_it_is_called(tmp_path, name):
    """`?` and `%41` mean something in a URI; two storages must not share one database for it."""
    if "?" in name and sqlalchemy.__version__ < "2.1":
        with pytest.raises(TrackingError, match="give another folder"):
            default_uri(tmp_path / name)
        return
    uri = default_uri(tmp_path / name)
    assert sqlite_path(uri) == tmp_path / name / "mlflow.db"
    Tracker(uri, artifacts=tmp_path / name).client.create_experiment("some")
    assert list(tmp_path.rglob("mlflow.db")) == [tmp_path / name / "mlflow.db"]
    assert sweep_names(Tracker(uri, artifacts=tmp_path / name)) == ["some"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"SQLite format 3\0"])
def test_a_damaged_empty_database_in_the_cache_is_made_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "mlflow" / f"empty-{mlflow.__version__}.db"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    Tracker(default_uri(tmp_path / "first"), artifacts=tmp_path).client.create_experiment("some")
    assert kept.read_bytes()[:16] == b"SQLite format 3\0"
    second = Tracker(default_uri(tmp_path / "second"), artifacts=tmp_path)
    assert sweep_names(second) == []
    second.client.create_experiment("some")


def test_a_new_database_has_the_permissions_that_the_umask_leaves(tmp_path):
    """sqlite itself gives 0644 at most, and a colleague of the group could not write."""
    before = os.umask(0o002)
    try:
        Tracker(default_uri(tmp_path), artifacts=tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o664
