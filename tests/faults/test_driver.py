"""Drill (c) at a random moment of a sweep, in each executor; `driver_killed.py` runs it at any number of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import tyro

from pforce.base.console import DONE
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce_experiments.sweeps.ltg_grid import Arguments, sweep
from tests.faults.drills import moments
from tests.faults.driver_killed import ARGUMENTS, SIGMAS, Call, is_good, round_of, table

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def undisturbed(openmoji_folder, tmp_path_factory) -> pd.DataFrame:
    """The table of the same sweep, carried out in this process."""
    folder: Path = tmp_path_factory.mktemp("undisturbed")
    options = Options(storage=str(folder), cpus_per_trial=1)
    assert (
        run_sweep(sweep(tyro.cli(Arguments, args=[*ARGUMENTS, "--sigma", *SIGMAS])), options, executor="local") == DONE
    )
    return table(folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("executor", ["processes", "tune", "groups"])  # local: a trial killed at any write
def test_a_sweep_whose_driver_is_killed_continues(undisturbed, tmp_path, executor, monkeypatch):
    """The table of the undisturbed sweep, a run a cell, nothing lost but work since the last checkpoint, and no worker
    of the killed driver left."""
    monkeypatch.setattr(Call, "waits_for_agents", False)
    moment = moments(f"driver {executor}", 10, 60 if executor == "groups" else 120, count=1)
    found = round_of(tmp_path / "round", moment, undisturbed, of_steps=True, patience=20, executor=executor)
    assert is_good(found), found
    assert len(found["killed after s"]) == 1
    assert not [name for name in found["left behind"] if "agent" not in name.lower()], "Ray's agents may take a minute"
