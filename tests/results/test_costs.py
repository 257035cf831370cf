"""What runs cost, of runs in a real sqlite database. Oracle: sums by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest

from pforce.commands.cost import notes
from pforce.results.costs import costs, run_costs
from pforce.tracking import Tags, default_uri, runs_frame
from tests.tracking.writer import RunSpec, SweepRun, Writer


@pytest.fixture
def tracker(tmp_path: Path) -> Writer:
    return Writer(default_uri(tmp_path), artifacts=tmp_path / "artifacts")


def run(tracker: Writer, sweep: SweepRun, name: str, status: str, metrics: dict[str, float], **tags: str) -> None:
    tags = {key.replace("_", "."): value for key, value in tags.items()}
    run_id = tracker.open_trial(sweep, RunSpec(name, name, {"training.images": 1000}, tags))
    if "images" in metrics:
        images = metrics.pop("images")
        tracker.log(run_id, {"train/images_seen": images, "train/loss": 1.0}, step=int(images))
    tracker.log(run_id, metrics)
    if status != "RUNNING":
        tracker.close(run_id, status)


def test_what_gave_no_result_is_a_cost(tracker):
    grid = tracker.open_sweep("grid", "1", {})
    run(tracker, grid, "a", "FINISHED", {"cost/device_hours": 4.0, "cost/seconds": 7200.0, "images": 1000},
        device="NVIDIA H100", mlflow_user="ada")  # fmt: skip
    run(tracker, grid, "b", "FAILED", {"cost/device_hours": 1.0, "images": 300}, mlflow_user="ada")
    run(tracker, grid, "c", "KILLED", {"cost/device_hours": 0.5, "images": 100}, mlflow_user="bob")
    run(tracker, grid, "d", "RUNNING", {"cost/device_hours": 0.25, "images": 50}, mlflow_user="bob")
    run(tracker, grid, "e", "FAILED", {}, mlflow_user="bob")
    other = tracker.open_sweep("other", "2", {})
    run(tracker, other, "f", "FINISHED", {"cost/device_hours": 8.0, "cost/seconds": 3600.0}, device="cpu",
        mlflow_user="ada")  # fmt: skip
    of_runs = run_costs(runs_frame(tracker))
    table = costs(of_runs, "sweep").set_index("sweep")
    assert list(table.index) == ["grid", "other"]  # GPUs first
    assert list(table["kind"]) == ["gpu", "cpu"]  # failed runs have no device of their own: that of their sweep
    hours = ["device_hours", "finished_hours", "failed_hours", "killed_hours", "running_hours"]
    assert list(table.loc["grid", hours]) == pytest.approx([5.75, 4.0, 1.0, 0.5, 0.25])
    assert list(table.loc["other", hours]) == pytest.approx([8.0, 8.0, 0.0, 0.0, 0.0])
    assert list(table["share"]) == [1.0, 1.0]  # hours of GPUs and of cores are never added up
    assert list(table.loc["grid", ["trials", "images", "seconds", "unrecorded"]]) == [5, 1450, 7200, 1]
    assert "1 run recorded no cost" in notes(of_runs)[0]
    by_user = costs(of_runs, "user").set_index(["user", "kind"])["device_hours"].to_dict()
    assert by_user == pytest.approx({("ada", "gpu"): 5.0, ("bob", "gpu"): 0.75, ("ada", "cpu"): 8.0})
    assert costs(of_runs, "user").set_index(["user", "kind"]).loc[("ada", "gpu"), "share"] == pytest.approx(5 / 5.75)
    assert set(costs(of_runs, "device")["device"]) == {"NVIDIA H100", "cpu"}
    assert len(costs(of_runs, "day")) == 2


def test_hours_count_on_the_day_of_the_end_in_utc(tracker, monkeypatch):
    """Whatever the zone of this machine; a trial that runs has the day of its last report."""
    sweep = tracker.open_sweep("grid", "1", {})
    for name, status, hours in (("a", "FINISHED", 1.0), ("b", "FINISHED", 2.0), ("c", "RUNNING", 4.0)):
        run(tracker, sweep, name, status, {"cost/device_hours": hours, "cost/seconds": 60.0}, device="cpu")
    frame = runs_frame(tracker).sort_values("run_name", ignore_index=True)
    frame["start_time"] = pd.to_datetime(["2026-03-01 23:50", "2026-03-02 00:10", "2026-03-01 10:00"])
    frame["end_time"] = pd.to_datetime(["2026-03-02 00:05", "2026-03-02 23:59", None])
    frame["last_activity"] = pd.to_datetime(["2026-03-02 00:05", "2026-03-02 23:59", "2026-03-03 09:00"])
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        of_runs = run_costs(frame)
    finally:
        monkeypatch.undo()
        time.tzset()
    table = costs(of_runs, "day")
    assert table[["day", "device_hours"]].values.tolist() == [["2026-03-02", 3.0], ["2026-03-03", 4.0]]
    assert "2 trials ended on a later day (UTC) than they began: all of their 5.000" in notes(of_runs, "day")[0]
    assert not any("later day" in note for note in notes(of_runs, "sweep"))


def test_a_training_that_trials_share_counts_once(tracker):
    """Two cells differ in their evaluation: the second finds the first's training and reports its cost, too."""
    sweep = tracker.open_sweep("grid", "1", {})
    cost = {"cost/training_seconds": 3600.0, "images": 1000.0}
    for name, evaluation in (("a", 400.0), ("b", 1200.0)):
        seconds = {"cost/seconds": 3600 + evaluation, "cost/device_hours": 2 * (3600 + evaluation) / 3600}
        run(tracker, sweep, name, "FINISHED", {**cost, **seconds}, device="cpu", **{Tags.TRAINING: "one"})
    (row,) = costs(run_costs(runs_frame(tracker)), "sweep").to_dict("records")
    assert row["device_hours"] == pytest.approx(2 * (3600 + 400 + 1200) / 3600)
    assert (row["seconds"], row["images"]) == (pytest.approx(5200), 1000)
    assert "2.000 device-hours of trainings that several trials share" in notes(run_costs(runs_frame(tracker)))[-1]


def test_a_training_that_another_sweep_goes_on_with(tracker):
    """Killed after 0.5 device-hours in one sweep, finished with 2 in all in the next."""
    first, second = tracker.open_sweep("first", "1", {}), tracker.open_sweep("second", "2", {})
    run(tracker, first, "a", "KILLED", {"cost/device_hours": 0.5, "images": 250}, device="cpu", **{Tags.TRAINING: "t"})
    whole = {"cost/device_hours": 2.0, "cost/seconds": 7200.0, "cost/training_seconds": 7200.0, "images": 1000.0}
    run(tracker, second, "a", "FINISHED", whole, device="cpu", **{Tags.TRAINING: "t"})
    table = costs(run_costs(runs_frame(tracker)), "sweep").set_index("sweep")
    assert table["device_hours"].to_dict() == pytest.approx({"first": 0.5, "second": 1.5})
    assert table["images"].to_dict() == pytest.approx({"first": 250, "second": 750})


def test_copies_of_a_cell_count_once(tracker):
    """A cell that two sweeps have is a run of each."""
    cost = {"cost/training_seconds": 3600.0, "images": 1000.0, "cost/seconds": 4000.0, "cost/device_hours": 2.0}
    for name in ("first", "second"):
        sweep = tracker.open_sweep(name, name, {})
        run(tracker, sweep, "a", "FINISHED", dict(cost), device="cpu", **{Tags.TRAINING: "t"})
    table = costs(run_costs(runs_frame(tracker)), "sweep").set_index("sweep")
    assert table[["trials", "device_hours", "seconds", "images"]].to_dict("index") == {
        "first": {"trials": 1, "device_hours": 2.0, "seconds": 4000.0, "images": 1000.0}
    }


def test_runs_that_only_evaluate_count_as_one_device(tracker):
    sweep = tracker.open_sweep("samplers", "1", {})
    run(tracker, sweep, "a", "FINISHED", {"cost/evaluation_seconds": 1800.0})
    (row,) = costs(run_costs(runs_frame(tracker)), "sweep").to_dict("records")
    assert (row["kind"], row["device_hours"], row["seconds"], row["unrecorded"]) == ("unknown", 0.5, 1800.0, 0)


def test_an_empty_store(tracker):
    assert run_costs(runs_frame(tracker)).empty
    assert costs(run_costs(runs_frame(tracker)), "sweep").empty
