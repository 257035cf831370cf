"""Sweeps end to end: a real Ray cluster, a real MLflow database, real trainings on real drawings."""

from __future__ import annotations

import shutil
import threading
import time

import mlflow
import pandas as pd
import pytest
import torch

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, STOPPED, make_console
from pforce.base.errors import ConfigError
from pforce.config import with_fields
from pforce.data import DataError
from pforce.orchestration.axes import Axis
from pforce.orchestration.find import find_source
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, trial_folder
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import table_rows
from pforce.records.lease import leased
from pforce.storage import StorageError
from pforce.tracking import Mirror, Tags, View
from pforce.training import Diverged
from pforce.training.checkpoint import STATE, saved
from pforce.trial.run import run_trial
from pforce.trial.source import load_source
from pforce.trial.where import Paths, Where
from tests.data.helpers import shards, write_samples
from tests.orchestration.conftest import make_plan, small_sweep
from tests.training.conftest import DATA, tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
SIGMAS = Axis("timesteps.sigma", (0.2, 0.5, 0.6))
TIMES = ("start_time", "end_time", "last_activity")
"""A run is opened before its training, and closed after its last part."""


def test_a_sweep_ends_in_runs_and_a_table_and_is_not_run_twice(ray_cluster, tmp_path, console):
    """Two distinct of three cells and two seeds: four children under one parent, means and spreads over seeds."""
    sweep = small_sweep(SIGMAS, seeds=(0, 1))
    first = make_plan(sweep, tmp_path)
    keep_sweep(first)
    assert len(first.missing) == 4
    assert execute(first, console, "tune") == DONE

    frame = results.runs(first.options.uri)
    assert list(frame["status"]) == ["FINISHED"] * 4
    assert frame["parent"].nunique() == 1
    assert set(frame["timesteps.sigma"]) == {0.2, 0.5}
    assert set(frame["seed"]) == {0, 1}
    assert frame["val/loss"].between(0.1, 3).all()
    assert {"fd/openmoji", "difficulty/pearson_t0.20", "difficulty/pearson_t0.60", "cost/nfe", "cost/device_hours",
            "throughput/images_per_second"} <= set(frame.columns)  # fmt: skip
    stored = results.runs(first.options.root)  # which has all numbers, not only the headline
    segments = [c for c in stored.columns if c.startswith("val/loss_t")]
    assert len(segments) == 8
    assert (stored[segments].mean(axis=1) - stored["val/loss"]).abs().max() < 1e-9
    assert sorted(frame["val/loss"]) == sorted(stored["val/loss"])

    client = mlflow.MlflowClient(first.options.uri)
    run = client.get_run(frame["run_id"].iloc[0])
    assert run.data.tags["device"]
    assert run.data.tags["version.torch"]
    assert run.data.tags["weights"] == "ema"
    assert run.data.tags["precision"] == "float32"
    assert (run.data.tags["input.data"], run.data.tags["input.detector"]) == (
        first.inputs.data, first.inputs.detector_sha256,
    )  # fmt: skip
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [16 * k for k in range(1, 7)]
    assert {"samples.png", "uncertainty_maps.png"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
    assert client.get_run(frame["parent"].iloc[0]).info.status == "FINISHED"

    table = results.cell_table(frame, table_rows(first))
    assert list(table["sigma"]) == ["0.2", "0.5, 0.6"]
    assert list(table["n"]) == [2, 2]
    by_hand = frame[frame["timesteps.sigma"] == 0.2]["val/loss"]
    assert table["val loss"][0] == pytest.approx(by_hand.mean())
    assert table["val loss sd"][0] == pytest.approx(by_hand.std())

    # The storage and the tracking store agree on all that both show.
    stored = results.runs(tmp_path, sweep.name).set_index("fingerprint").sort_index()
    shown = frame.set_index("fingerprint").sort_index()
    both = [name for name in stored.columns.intersection(shown.columns) if name not in ("run_id", *TIMES)]
    assert len(both) > 80
    for name in both:
        pd.testing.assert_series_equal(stored[name], shown[name], check_dtype=False)

    again = make_plan(sweep, tmp_path)
    assert again.missing == []
    assert execute(again, console, "tune") == DONE
    assert len(results.runs(first.options.uri)) == 4


def test_a_trial_gives_the_same_result_in_each_executor(ray_cluster, tmp_path, console):
    """One loop, three executors: every measured number is equal. (Groups: test_groups.py.)"""
    frames = []
    for executor in ("local", "processes", "tune"):
        plan = make_plan(small_sweep(), tmp_path / executor, cpus_per_trial=1)
        assert execute(plan, console, executor) == DONE
        frames.append(results.runs(plan.options.uri).iloc[0])
    for metric in ("val/loss", "fd/openmoji", "difficulty/pearson_t0.60", "train/loss"):
        assert frames[0][metric] == frames[1][metric] == frames[2][metric], metric


def test_a_diverged_cell_fails_with_its_reason_and_the_others_finish(tmp_path, console):
    """Learning rate 1e20 is a real divergence. The next call shows it and trains nothing, as the storage alone does;
    with --again it is tried again, in the same run."""
    sweep = small_sweep(Axis("optimizer.learning_rate", (1e-3, 1e20)), steps=10)
    plan = make_plan(sweep, tmp_path)
    assert execute(plan, console, "processes") == SOME_FAILED
    frame = results.runs(plan.options.uri).set_index("optimizer.learning_rate")
    assert frame["status"].to_dict() == {1e-3: "FINISHED", 1e20: "FAILED"}
    assert frame["reason"][1e20] == "diverged"
    client = mlflow.MlflowClient(plan.options.uri)
    assert "diverged" in client.get_run(frame["run_id"][1e20]).data.tags["error"]
    shown = make_plan(sweep, tmp_path)
    assert shown.missing == []
    assert [record.number("images_seen") for record in shown.diverged.values()] == [32.0], "two steps of sixteen"
    assert execute(shown, console, "processes") == SOME_FAILED
    keep_sweep(plan)
    stored = results.runs(tmp_path).set_index("optimizer.learning_rate")
    assert stored["status"].to_dict() == frame["status"].to_dict()
    assert stored["reason"].dropna().to_dict() == {1e20: "diverged"}
    again = make_plan(sweep, tmp_path, again=("diverged",))
    assert [item.experiment.optimizer.learning_rate for item in again.missing] == [1e20]
    assert execute(again, console, "local") == SOME_FAILED
    assert len(results.runs(plan.options.uri)) == 2
    (record,) = make_plan(sweep, tmp_path).diverged.values()
    assert record.started > next(iter(shown.diverged.values())).finished, "the new attempt's"
    longer = make_plan(small_sweep(Axis("optimizer.learning_rate", (1e20,)), steps=20, name="longer"), tmp_path)
    assert longer.missing == [], "a longer training comes past the same point"


def left_open(plan: Plan) -> tuple[str, str]:
    """Runs of a sweep and of its only cell, as a killed driver leaves them."""
    page = Mirror(plan.tracker, plan.options.place).page(plan.sweep.name)
    (item,), identity = plan.work, plan.sweep.identity(plan.work)
    parent = page.ensure({page.key(identity): View("s", {Tags.KIND: "sweep", Tags.SWEEP: identity}, started=1)})
    about = {Tags.KIND: "trial", Tags.FINGERPRINT: item.fingerprint}
    parent_id = parent[page.key(identity)].run_id
    run = page.ensure({page.key(item.fingerprint): View(item.label, about, started=1)}, parent_id)
    return parent_id, run[page.key(item.fingerprint)].run_id


def test_what_a_killed_driver_did_not_live_to_show_is_shown(tmp_path, console):
    """The trial had left its records, and its run was open: nothing runs again, and the run gets numbers, pictures and
    every point of its curve once."""
    sweep = small_sweep()
    plan = make_plan(sweep, tmp_path)
    (item,) = plan.work
    parent, run_id = left_open(plan)
    place = plan.options.place
    row = run_trial(item.experiment, Paths(DATA, place), Where(torch.device("cpu")), inputs=plan.inputs)
    assert row is not None
    for _ in range(2):
        again = make_plan(sweep, tmp_path)
        assert again.missing == []
        assert execute(again, console, "local") == DONE
        (run,) = results.runs(again.options.uri).to_dict("records")
        assert (run["run_id"], run["status"]) == (run_id, "FINISHED")
        assert run["val/loss"] == row.metrics["val/loss"]
        client = again.tracker.client
        points = [point.step for point in client.get_metric_history(run_id, "train/loss")]
        assert points == sorted(set(points))
        assert len(points) == item.experiment.training.steps
        names = {file.path for file in client.list_artifacts(run_id)}
        assert names == {"samples.png", "uncertainty_maps.png", "numbers.json", "images"}
        assert again.tracker.client.get_run(parent).info.status == "FINISHED"


def test_a_divergence_that_a_killed_driver_did_not_live_to_show_is_shown(tmp_path, console):
    """Its record is there, its run was open: it ends as FAILED, and nothing is trained."""
    sweep = small_sweep(Axis("optimizer.learning_rate", (1e20,)), steps=10)
    plan = make_plan(sweep, tmp_path)
    (item,) = plan.work
    parent, run_id = left_open(plan)
    with pytest.raises(Diverged):
        run_trial(item.experiment, Paths(DATA, plan.options.place), Where(torch.device("cpu")), inputs=plan.inputs)
    for _ in range(2):
        again = make_plan(sweep, tmp_path)
        assert execute(again, console, "local") == SOME_FAILED
        (run,) = results.runs(again.options.uri).to_dict("records")
        assert (run["run_id"], run["status"], run["reason"]) == (run_id, "FAILED", "diverged")
        assert again.tracker.client.get_run(parent).info.status == "FAILED"


def test_the_wall_clock_limit_stops_the_sweep(tmp_path, console):
    """A training that would take minutes, stopped after seconds: KILLED with its reason, and still to be run.

    That it goes on at its checkpoint is tested in tests/faults/test_stop.py.
    """
    sweep = small_sweep(steps=40_000)
    for seconds in (3, 12, 48):  # on a busy machine the first may pass before the first step
        plan = make_plan(sweep, tmp_path, max_hours=seconds / 3600)
        assert execute(plan, console, "local") == STOPPED
        frame = results.runs(plan.options.uri)
        if len(frame):
            break
    (run,) = frame.to_dict("records")
    assert (run["status"], run["reason"]) == ("KILLED", "time limit")
    assert len(make_plan(sweep, tmp_path).missing) == 1


def test_bad_data_fails_the_trial_naming_the_shard(tmp_path, console):
    """A shard truncated after the plan was made: it is not the one that its manifest names."""
    copy = tmp_path / "data"
    shutil.copytree(DATA, copy)
    sweep = Sweep("bad", with_fields(tiny(6), {"data.path": str(copy)}), ())
    plan = make_plan(sweep, tmp_path / "runs")
    shard = copy / "train-00003.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    assert execute(plan, console, "processes") == SOME_FAILED
    (run,) = results.runs(plan.options.uri).to_dict("records")
    assert run["reason"] == "bad data"
    error = mlflow.MlflowClient(plan.options.uri).get_run(run["run_id"]).data.tags["error"]
    assert "train-00003.tar" in error


def test_a_missing_shard_is_said_before_anything_starts(tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(DATA, copy)
    (copy / "train-00002.tar").unlink()
    with pytest.raises(DataError, match=r"train-00002\.tar"):
        make_plan(Sweep("bad", with_fields(tiny(6), {"data.path": str(copy)}), ()), tmp_path / "runs")
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_data_that_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.classes = 7: must be 11"):
        make_plan(Sweep("s", with_fields(tiny(6), {"model.classes": 7}), ()), tmp_path)


def test_every_cell_is_held_against_the_data(tmp_path):
    """Not the first alone: an axis may break the fit, and a worker would find out much later."""
    with pytest.raises(ConfigError, match=r"model\.classes = 5: must be 11"):
        make_plan(small_sweep(Axis("model.classes", (11, 5))), tmp_path)
    with pytest.raises(DataError, match="8 training shards for 16 streams"):
        make_plan(Sweep("s", with_fields(tiny(6), {"data.streams": 16}), ()), tmp_path)


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path, capsys):
    """Two checkpoints, the newer one damaged: resumed from the older; the warning reaches driver and record."""
    console = make_console(width=200)
    whole = make_plan(small_sweep(steps=12), tmp_path / "whole", cpus_per_trial=1)
    assert execute(whole, console, "processes") == DONE
    plan = make_plan(small_sweep(steps=12), tmp_path / "damaged", cpus_per_trial=1)
    (item,) = plan.work
    mine, theirs = (trial_folder(p.options, item) for p in (plan, whole))
    shutil.copytree(theirs, mine)
    assert [path.name for path in saved(mine)] == ["step_00000010", "192"]
    state = mine / "snapshots" / "192" / STATE
    state.write_bytes(state.read_bytes()[:-3])
    capsys.readouterr()
    assert execute(plan, console, "processes") == DONE
    assert "damaged checkpoint skipped" in capsys.readouterr().out
    (row,), (reference,) = (results.runs(p.options.uri).to_dict("records") for p in (plan, whole))
    assert row["val/loss"] == reference["val/loss"]
    tags = mlflow.MlflowClient(plan.options.uri).get_run(row["run_id"]).data.tags
    assert "snapshots/192" in tags["warning"]


def test_cells_that_differ_in_their_evaluation_only_share_a_training(tmp_path, console):
    """Oracle: checkpoints' folders, and training seconds, which are those of one training; distances differ."""
    sweep = Sweep("s", tiny(6), (Axis("sampler.num_function_evaluations", (2, 4)),))
    plan = make_plan(sweep, tmp_path)
    assert len({item.training for item in plan.work}) == 1
    assert execute(plan, console, "local") == DONE
    assert len(list((tmp_path / "trainings").iterdir())) == 1
    frame = results.runs(plan.options.uri)
    assert len(frame) == 2
    assert frame["cost/training_seconds"].nunique() == 1
    assert frame["val/loss"].nunique() == 1
    assert frame["fd/openmoji"].nunique() == 2
    assert set(frame["training"]) == {plan.work[0].training}
    keep_sweep(plan)
    for run in frame.to_dict("records"):  # a run's model is sampled as the run was, not as the last one was
        source = load_source(find_source(run["run_id"], storage=tmp_path))
        assert source.experiment is not None
        assert source.experiment.sampler.num_function_evaluations == run["cost/nfe"]


def test_a_cell_waits_for_a_training_that_another_one_runs(tmp_path, console):
    """The training is held for two seconds: the trial waits, asks for its snapshot, and is done."""
    plan = make_plan(small_sweep(), tmp_path)
    held, released = threading.Event(), []

    def hold() -> None:
        with leased(plan.options.place, f"training/{plan.work[0].training}", "training"):
            held.set()
            time.sleep(2)
            released.append(time.monotonic())

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    assert execute(plan, console, "local") == DONE
    assert time.monotonic() > released[0]
    other.join()


def test_images_too_small_for_the_detector_are_refused(tmp_path):
    """Before the training, not after it."""
    write_samples(tmp_path / "data", shards([4] * 4))  # at 16²
    changes = {"data.path": str(tmp_path / "data"), "data.resolution": 16, "model.image_size": (16, 16)}
    with pytest.raises(ConfigError, match=r"data\.resolution = 16 with 3 channels: .*at least 32²"):
        make_plan(Sweep("s", with_fields(tiny(6), changes), ()), tmp_path / "runs")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--storage .*cannot be written"):
        make_plan(small_sweep(), tmp_path / "file" / "runs")


def test_the_report_writes_its_files(tmp_path, capsys):
    """Terminal, CSV, Markdown and figure; the caveat that the run is too short to rank anything; how to open MLflow."""
    sweep = small_sweep(SIGMAS, name="filed")
    assert run_sweep(sweep, Options(storage=str(tmp_path)), executor="local") == DONE
    printed = capsys.readouterr().out
    for text in (
        "the same distribution",
        "too short to rank anything",
        "mlflow ui --backend-store-uri sqlite:///",
        "images seen",
    ):
        assert text in printed
    table = pd.read_csv(tmp_path / "filed.csv")
    assert list(table["sigma"]) == ["0.2", "0.5, 0.6"]
    assert "| " in (tmp_path / "filed.md").read_text()
    assert (tmp_path / "filed.png").stat().st_size > 1000
    assert run_sweep(sweep, Options(storage=str(tmp_path)), dry_run=True) == DONE
    assert "Nothing to run" in capsys.readouterr().out
    assert run_sweep(small_sweep(name="other", steps=50), Options(storage=str(tmp_path)), dry_run=True) == DONE
    assert "Estimate for this machine" in capsys.readouterr().out
