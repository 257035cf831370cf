"""Finished cells in a real storage and runs in a real sqlite database, without the trainings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from pforce.base.console import make_console
from pforce.config import flat_params
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.sweep import Sweep, Work
from pforce.records.ledger import Ledger
from pforce.records.record import Record
from pforce.records.row import TENSORS
from pforce.trial.migrate import values_by_part
from tests.tracking.writer import RunSpec, Writer

Outcome = Mapping[str, float] | str | None
"""Metrics of a finished run, a status with its reason such as `FAILED diverged`, or None: no run."""


def known(item: Work, metrics: Mapping[str, float], ledger: Ledger, **made: str) -> None:
    """Records of a cell whose numbers are chosen by a test; parts that have none are there without.

    Args:
        made: their provenance.
    """
    cell = item.parts
    seconds = {"seconds": metrics.get("cost/training_seconds", 1.0), "device_seconds": 1.0}
    for part, values in (
        (cell.training, {}), (cell.weights, {TENSORS: cell.weights.digest}),
        *values_by_part(cell.request, cell.weights.digest, metrics),
    ):  # fmt: skip
        for each in ledger.all_of(part.digest):
            ledger.forget(each.digest, "another number")
        now = time.time()  # one that is measured again is another record than the one that was forgotten
        ledger.put(Record.of(part, values=values, started=now, finished=now, cost=seconds, provenance=made))


def planned_with(sweep: Sweep, folder: Path, outcome: Callable[[Work], Outcome]) -> Plan:
    """The plan of a sweep whose runs have these outcomes."""
    options, quiet = Options(storage=str(folder)), make_console(quiet=True)
    planned = plan(sweep, options, quiet)
    tracker = Writer(planned.tracker.uri, artifacts=planned.tracker.artifacts)
    keep_sweep(planned)
    parent = tracker.open_sweep(sweep.name, sweep.identity(planned.work), {})
    for item in planned.work:
        result = outcome(item)
        if result is None:
            continue
        run = tracker.open_trial(parent, RunSpec(item.label, item.fingerprint, flat_params(item.experiment), {}))
        if not isinstance(result, str):
            known(item, result, planned.ledger)
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


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two rows with seeds, one of them measured twice, one failed."""
    rows = [
        ("a0", "FINISHED", 1.0, 10.0, 1), ("a1", "FINISHED", 3.0, 20.0, 1), ("a0", "FINISHED", 1.5, 12.0, 2),
        ("b0", "FINISHED", 7.0, 30.0, 1), ("b1", "FAILED", 99.0, 99.0, 1),
    ]  # fmt: skip
    return pd.DataFrame(
        {
            "fingerprint": [r[0] for r in rows],
            "status": [r[1] for r in rows],
            "val/loss": [r[2] for r in rows],
            "fd/openmoji": [r[3] for r in rows],
            "cost/images_seen": 96_000.0,
            "start_time": pd.to_datetime([r[4] for r in rows], unit="s"),
        }
    )
