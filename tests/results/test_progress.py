"""How far sweeps are, of runs in a real sqlite database. Oracle: numbers that are written down here, by hand."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

import pandas as pd
import pytest

from pforce.base.console import make_console
from pforce.commands.runs import view
from pforce.results import progress
from pforce.tracking import Tags, default_uri
from tests.tracking.writer import RunSpec, SweepRun, Writer

IMAGES = 1000


@pytest.fixture
def tracker(tmp_path: Path) -> Writer:
    return Writer(default_uri(tmp_path), artifacts=tmp_path / "artifacts")


def trial(tracker: Writer, sweep: SweepRun, name: str, seen: int = 0, rate: float = 10.0) -> str:
    """A run under way that has seen so many images, and cost a device-hour each 1,000."""
    run = tracker.open_trial(sweep, RunSpec(f"cell {name}", name * 32, {"training.images": IMAGES}, {}))
    for images in range(100, seen + 1, 100):
        metrics = {"train/loss": 1.0, "train/images_seen": float(images), "cost/device_hours": images / 1000}
        tracker.log(run, {**metrics, "throughput/images_per_second": rate}, step=images)
    return run


def shown(tracker: Writer, later_seconds: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sweeps, and trials by their label."""
    found, now = progress.read(tracker), progress.now_utc() + pd.Timedelta(seconds=later_seconds)
    return progress.sweeps(found, now), progress.trials(found.runs, now).set_index("label")


def test_sweeps_of_one_name_are_told_apart(tracker):
    """By what all trials of one have in common and others have not; names that are there once need nothing."""
    for name, of_cells in (
        ("train", [{"seed": 0, "training.images": 6400}]),
        ("train", [{"seed": 1, "training.images": 6400}]),
        ("train", [{"seed": 1, "training.images": 12800}]),
        ("grid", [{"seed": 0}, {"seed": 1}]),
    ):
        sweep = tracker.open_sweep(name, f"{name} {of_cells}", {Tags.CELLS: str(len(of_cells))})
        for number, params in enumerate(of_cells):
            fields = {"name": "micro", "timesteps.m": 0.7, **params}
            run = tracker.open_trial(sweep, RunSpec(f"{name} {number}", f"{name} {of_cells} {number}", fields, {}))
            tracker.close(run, "FINISHED")
    table = shown(tracker)[0]
    assert sorted(table["differs"]) == ["", "images=12,800, seed=1", "images=6,400, seed=0", "images=6,400, seed=1"]
    assert table.set_index("sweep").loc["grid", "differs"] == ""


def test_trials_of_a_running_sweep_are_ordered_by_what_is_known(tracker):
    """The measured ones by their distance, then by images seen, then by loss; by their start once it has ended."""
    sweep = tracker.open_sweep("grid", "id", {Tags.CELLS: "6"})
    for name, seen, distance, loss in (
        ("a", 1000, 9.0, 1.0), ("b", 200, None, 0.7), ("c", 1000, 7.0, 2.0), ("d", 0, None, None),
        ("e", 300, None, 0.9), ("f", 200, None, 0.6),
    ):  # fmt: skip
        run = trial(tracker, sweep, name, seen)
        if loss is not None:
            tracker.log(run, {"train/loss": loss}, step=seen + 1)
        if distance is not None:
            tracker.log(run, {"fd/openmoji": distance, "val/loss": 1.0}, step=seen)
            tracker.close(run, "FINISHED")

    def rows() -> list[list[str]]:
        out = make_console(file=io.StringIO(), width=200)
        out.print(view(progress.read(tracker, "grid"), 200, "grid"))
        lines = out.file.getvalue().splitlines()
        return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "cell " in line]

    assert [row[0][-1] for row in rows()] == ["c", "a", "e", "f", "b", "d"]
    assert [row[2:4] for row in rows()] == [["7", "2.0000"], ["9", "1.0000"], ["–", "0.9000"], ["–", "0.6000"],
                                            ["–", "0.7000"], ["–", "–"]]  # fmt: skip
    tracker.close(sweep.run_id, "FINISHED")
    assert [row[0][-1] for row in rows()] == ["a", "b", "c", "d", "e", "f"]


def test_a_sweep_under_way(tracker):
    """Four cells: one done, one at a quarter, one failed at a fifth, one not begun."""
    sweep = tracker.open_sweep("grid", "id", {Tags.CELLS: "4"})
    done = trial(tracker, sweep, "a", 1000)
    finished = {"val/loss": 0.5, "fd/openmoji": 7.0, "cost/seconds": 120.0, "cost/training_seconds": 100.0}
    tracker.log(done, {**finished, "cost/device_hours": 1.5}, step=1000)
    tracker.close(done, "FINISHED")
    trial(tracker, sweep, "b", 200, rate=5.0)
    failed = trial(tracker, sweep, "c", 300)
    tracker.tag(failed, {Tags.REASON: "diverged", "pforce.attempts": "3"})
    tracker.close(failed, "FAILED")
    (row,), trials = shown(tracker)[0].to_dict("records"), shown(tracker)[1]
    assert (row["state"], row["planned"]) == ("running", 4)
    assert (row["done"], row["running"], row["failed"], row["stopped"]) == (1, 1, 1, 0)
    assert row["progress"] == pytest.approx((1 + 0.2 + 0.3) / 4)
    assert row["device_hours"] == pytest.approx(1.5 + 0.2 + 0.3)
    # 800 + 700 + 1,000 images at 5 a second, and a fifth more for the evaluation
    assert row["seconds_left"] == pytest.approx(2500 / 5 * 1.2)
    assert (row["metric"], row["best"]) == ("fd/openmoji", 7.0)
    assert list(trials.loc[["cell a", "cell b", "cell c"], "state"]) == ["done", "running", "failed"]
    assert list(trials.loc[["cell a", "cell b", "cell c"], "progress"]) == [1.0, 0.2, 0.3]
    assert trials.loc["cell b", "seconds_left"] == pytest.approx(800 / 5)
    assert trials.loc["cell a", "attempts"] == 1
    assert (trials.loc["cell c", "attempts"], trials.loc["cell c", "reason"]) == (3, "diverged")
    assert math.isnan(trials.loc["cell c", "seconds_left"])


def test_a_driver_that_died_is_silent(tracker):
    sweep = tracker.open_sweep("grid", "id", {Tags.CELLS: "2"})
    trial(tracker, sweep, "a", 500)
    tracker.close(trial(tracker, sweep, "b", 100), "KILLED")
    for later, state in ((590, "running"), (620, "silent")):
        (row,), trials = shown(tracker, later)[0].to_dict("records"), shown(tracker, later)[1]
        assert (row["state"], trials.loc["cell a", "state"]) == (state, state)
        assert (row["running"], row["stopped"]) == (1, 1)
        assert math.isnan(row["seconds_left"]) == (state == "silent")
        assert math.isnan(trials.loc["cell a", "seconds_left"]) == (state == "silent")
    heard = trials.loc["cell a", "last_activity"]
    assert abs((progress.now_utc() - heard).total_seconds()) < 60


def test_runs_of_an_earlier_version(tracker):
    """Without the number of cells and without train/images_seen: the step of the curve's last point tells it."""
    sweep = tracker.open_sweep("grid", "id", {})
    run = tracker.open_trial(sweep, RunSpec("cell a", "a", {"training.images": IMAGES}, {}))
    tracker.log(run, {"train/loss": 1.0}, step=400)
    tracker.open_trial(sweep, RunSpec("cell b", "b", {"training.images": IMAGES}, {}))
    (row,), trials = shown(tracker)[0].to_dict("records"), shown(tracker)[1]
    assert (row["planned"], row["progress"]) == (2, 0.2)
    assert list(trials.loc[["cell a", "cell b"], "progress"]) == [0.4, 0.0]
    tracker.close(run, "FINISHED")
    assert shown(tracker)[1].loc["cell a", "progress"] == 1.0


def test_cells_that_another_sweep_finished_are_done(tracker):
    first = tracker.open_sweep("first", "1", {Tags.CELLS: "1"})
    tracker.close(trial(tracker, first, "a", 1000), "FINISHED")
    tracker.close(first.run_id, "FINISHED")
    second = tracker.open_sweep("second", "2", {Tags.CELLS: "2", Tags.REUSED: "a" * 12})
    trial(tracker, second, "b", 500)
    table = shown(tracker)[0].set_index("sweep")
    assert list(table.loc["second", ["planned", "done", "running"]]) == [2, 1, 1]
    assert table.loc["second", "progress"] == pytest.approx(0.75)
    assert table.loc["second", "device_hours"] == pytest.approx(0.5)  # the other's cost is the other's
    assert (table.loc["first", "state"], table.loc["first", "progress"]) == ("done", 1.0)


def test_an_empty_store(tracker):
    table, trials = shown(tracker)
    assert table.empty
    assert trials.empty
    tracker.open_sweep("grid", "id", {Tags.CELLS: "3"})
    (row,) = shown(tracker)[0].to_dict("records")
    assert (row["planned"], row["done"], row["progress"], row["state"]) == (3, 0, 0.0, "running")


def test_reading_takes_a_few_calls_whatever_the_number_of_runs(tracker):
    """No call a run: 30 runs take no more statements than 3."""
    from sqlalchemy import event

    sweep = tracker.open_sweep("grid", "id", {Tags.CELLS: "30"})
    statements: list[str] = []
    engine = tracker.client._tracking_client.store.engine
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    counts = []
    for name in range(30):
        trial(tracker, sweep, chr(97 + name), 100)
        if name in (2, 29):
            statements.clear()
            started = time.perf_counter()
            progress.read(tracker)
            print(f"{name + 1} runs: {time.perf_counter() - started:.3f} s, {len(statements)} statements")
            counts.append(len(statements))
    assert counts[1] <= counts[0] + 2
