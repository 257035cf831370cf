"""Drill (c) at two random moments of one sweep; `driver_killed.py` runs it at any number of them."""

from __future__ import annotations

import pytest
import tyro

from pforce.orchestration import local
from pforce.orchestration.plan import Options
from pforce.orchestration.script import run_sweep
from pforce.terminal import DONE
from sweeps.ltg_grid import Arguments, sweep
from tests.faults.drills import moments
from tests.faults.driver_killed import ARGUMENTS, is_good, round_of, table


@pytest.mark.timeout(600)
def test_a_sweep_whose_driver_is_killed_twice_continues(openmoji_folder, tmp_path):
    """The table of the undisturbed sweep (here, without Ray), a run a cell, and nothing lost but work since the last
    checkpoint."""
    undisturbed = tmp_path / "undisturbed"
    options = Options(storage=str(undisturbed), cpus_per_trial=1)
    assert run_sweep(sweep(tyro.cli(Arguments, args=ARGUMENTS)), options, launcher=local.launch) == DONE
    found = round_of(tmp_path / "round", moments("driver", 10, 330), table(undisturbed), of_steps=True, patience=5)
    assert is_good(found), found
    assert len(found["killed after s"]) == 2
