"""The λ sweep. Oracle: real trainings on real drawings, an untrained head whose numbers are known, exit codes."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pforce import results
from pforce.base.console import DONE, exit_on_errors
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce_experiments.sweeps import lambda_sweep
from tests.results.conftest import planned_with
from tests.training.conftest import tiny

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).resolve().parents[1] / "sweeps" / "lambda_sweep.py"
WEIGHTS = Axis("flow.difficulty_weight", (0.0, 0.01))


def test_the_sweep_ends_in_a_table_with_calibration_and_a_figure(tmp_path, capsys):
    """λ = 0: the head stays at a variance of 1, R has no value and calib is |ln of the mean squared error|."""
    sweep = Sweep("weights", tiny(6), (WEIGHTS,))
    assert run_sweep(sweep, Options(storage=str(tmp_path)), executor="local", report=lambda_sweep.report) == DONE
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Calibration: {tmp_path / 'weights_calibration.png'}" in printed
    assert "have no calibration" not in printed
    assert (tmp_path / "weights_calibration.png").stat().st_size > 2000
    table = pd.read_csv(tmp_path / "weights.csv")
    assert list(table["difficulty_weight"]) == [0, 0.01]
    assert {"R(0.2)", "R(0.6)", "calib(0.2)", "calib(0.6)", "fd/openmoji"} <= set(table.columns)
    assert table[["calib(0.2)", "calib(0.6)"]].notna().all(axis=None)

    frame = results.runs(tmp_path)
    untrained = frame[frame["flow.difficulty_weight"] == 0].iloc[0]
    for t in ("0.20", "0.60"):
        assert all(untrained[f"calibration/expected_t{t}_d{decile}"] == 1 for decile in range(1, 11))
        error = abs(math.log(untrained[f"calibration/observed_t{t}_d1"]))
        assert untrained[f"calibration/error_t{t}"] == pytest.approx(error)
        assert math.isnan(untrained[f"difficulty/pearson_t{t}"])


def test_a_result_from_before_calibration_was_measured_stays_and_is_said_to_lack_it(tmp_path, capsys):
    """Its fingerprint is the same, so it is not run again: a note, and no figure without a line."""
    sweep = Sweep("older", tiny(6), (WEIGHTS,))
    planned = planned_with(sweep, tmp_path, lambda item: {"val/loss": 1.0})
    assert run_sweep(sweep, planned.options, report=lambda_sweep.report) == DONE
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 finished before" in printed
    assert "note: 2 of 2 finished trials have no calibration" in printed
    assert not (tmp_path / "older_calibration.png").exists()


def test_the_sweep_as_data():
    sweep = lambda_sweep.sweep(lambda_sweep.Arguments())
    assert [axis.path for axis in sweep.axes] == ["flow.difficulty_weight"]
    assert sweep.axes[0].values == (0.001, 0.01, 0.1)
    assert (sweep.seeds, sweep.base.training.images) == ((0,), 6_400)
    full = lambda_sweep.Arguments(
        preset="full", difficulty_weight=(0.1, 0.0), axis=("timesteps.sigma=0.2,0.4",), set=("training.batch=128",)
    )
    sweep = lambda_sweep.sweep(full)
    assert sweep.axes[0].values == (0.0, 0.1)
    assert len(sweep.cells()) == 2 * 2 * 3
    assert (sweep.base.training.images, sweep.base.training.batch) == (96_000, 128)
    assert lambda_sweep.sweep(replace(full, seeds=2)).seeds == (0, 1)


REFUSED = [
    (("openmoji32_sit_micro",), "openmoji32_sit_micro: a model without a difficulty head has no λ"),
    (("--values", "-1"), "flow.difficulty_weight = -1.0: must be ≥ 0"),
    (("--axis", "flow.difficulty_weight=1"), "flow.difficulty_weight: is an axis twice"),
    (("openmoji32_macro",), "did you mean openmoji32_micro"),
    (("--set", "seed=4"), "set with --seeds"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_errors_are_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lambda_sweep.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        exit_on_errors(lambda_sweep.main)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_help_in_a_process_of_its_own(tmp_path):
    """From another folder: what the script imports of the other sweep is found there too."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"--values .*--difficulty-weight", done.stdout)
    assert "--preset {quick,full}" in done.stdout
