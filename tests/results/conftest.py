"""Finished runs in a real sqlite database, without the trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from pforce.orchestration.plan import Options, Plan, plan
from pforce.orchestration.sweep import Sweep, Work, flat_params
from pforce.tracking import RunSpec

Outcome = Mapping[str, float] | str | None
"""Metrics of a finished run, a status with its reason such as `FAILED diverged`, or None: no run."""


def planned_with(sweep: Sweep, folder: Path, outcome: Callable[[Work], Outcome]) -> Plan:
    """The plan of a sweep whose runs have these outcomes."""
    options, quiet = Options(storage=str(folder)), Console(quiet=True)
    planned = plan(sweep, options, quiet)
    tracker = planned.tracker
    parent = tracker.open_sweep(sweep.name, sweep.identity(planned.work), {})
    for item in planned.work:
        result = outcome(item)
        if result is None:
            continue
        run = tracker.open_trial(parent, RunSpec(item.label, item.fingerprint, flat_params(item.experiment), {}))
        if not isinstance(result, str):
            tracker.log(run, result)
            tracker.close(run, "FINISHED")
        elif result != "RUNNING":
            status, reason = result.split(" ", 1)
            tracker.tag(run, {"reason": reason})
            tracker.close(run, status)
    return plan(sweep, options, quiet)


@pytest.fixture
def wide(monkeypatch) -> None:
    """Sentences are not broken into lines."""
    monkeypatch.setenv("COLUMNS", "400")
