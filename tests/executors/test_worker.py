"""`pforce worker`: which sweeps it takes, which it refuses, and its time limit. Real trainings in this process."""

from __future__ import annotations

import pytest

from pforce import catalog
from pforce.base import slurm
from pforce.base.console import DONE, STOPPED, USAGE_ERROR
from pforce.records.sweeps import read_sweeps
from pforce.storage import Storage
from tests.faults.driver_killed import ARGUMENTS
from tests.support.starts import pforce

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
SMALL = [*ARGUMENTS, "--set", "training.images=640", "--sigma", "0.2", "--cpus-per-trial", "1"]


def test_our_sweeps_are_found_by_entry_point():
    assert {"ltg_grid", "lambda_sweep", "sampler_thresholds"} <= set(catalog.sweeps())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93784), ("2:03:04", 7384), ("3:04\n", 184), ("UNLIMITED", None), ("INVALID", None), ("", None)],
)
def test_time_left_as_slurm_prints_it(text, seconds):
    assert slurm.seconds_of(text) == seconds


def test_time_left_as_the_environment_says_it(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4102444800")  # the year 2100
    left = slurm.seconds_left()
    assert left is not None
    assert left > 3600


def test_a_worker_trains_measures_and_writes_the_table_and_no_database(openmoji_folder, tmp_path):
    """A second one finds nothing to do; a third with another value adds it. The storage has the sweep, and the mirror
    shows it."""
    storage = tmp_path / "runs"
    done = pforce("worker", "ltg_grid", "--storage", storage, *SMALL)
    assert done.returncode == DONE, done.stdout + done.stderr
    assert (storage / "ltg_grid.csv").exists()
    assert not list(storage.glob("*.db"))
    assert "pforce mirror" in done.stdout
    again = pforce("worker", "ltg_grid", "--storage", storage, *SMALL)
    assert again.returncode == DONE
    assert "1 finished before" in again.stdout
    shown = pforce("mirror", "--storage", storage)
    assert shown.returncode == DONE, shown.stdout + shown.stderr
    assert "1 run made" in " ".join(shown.stdout.split())
    assert [entry.name for entry in read_sweeps(Storage.open(storage), print)] == ["ltg_grid"]


def test_a_worker_whose_time_is_over_leaves_a_checkpoint_and_goes_on(openmoji_folder, tmp_path):
    words = ["worker", "ltg_grid", "--storage", tmp_path / "runs", *SMALL, "--set", "training.images=64000"]
    stopped = pforce(*words, "--minutes", "0.05")
    assert stopped.returncode == STOPPED, stopped.stdout + stopped.stderr
    assert "0 of 1 cell finished" in stopped.stdout
    assert list((tmp_path / "runs").glob("trainings/*/checkpoints/step_*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ltg_gird"], "did you mean ltg_grid?"),
        ([], "its first word is what it works on"),
        (["ltg_grid", "--minutes", "0"], "minutes = 0.0: must be > 0"),
        (["ltg_grid", "--minutes", "soon"], "minutes = 'soon'"),
        (["ltg_grid", "--search", "tpe", "--trials", "3"], "the trials of a search (--search tpe)"),
        (["sweeps/ltg_grid.py", "--evaluation-workers", "2"], "--evaluation-workers 2: left out"),
        (["ltg_grid", "--workers", "2"], "--executor worker: runs each task in one process"),
        (["ltg_grid", "--ray-address", "auto"], "--ray-address auto"),
        (["sampler_thresholds"], "executor = 'worker'"),
    ],
)
def test_what_a_worker_cannot_do_is_refused_with_the_cure(tmp_path, words, said):
    done = pforce("worker", *words, *(["--storage", tmp_path] if words else []))
    assert done.returncode == USAGE_ERROR, done.stdout + done.stderr
    assert said in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())
