"""Drill (e): trials that fail each in their own way. Real divergence, real failed allocations."""

from __future__ import annotations

import pytest

from pforce import results
from pforce.base.console import SOME_FAILED
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.tracking import default_uri
from tests.training.conftest import tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]
HUGE = 1_000_000
"""A width whose one matrix has 12 TB."""


@pytest.mark.parametrize("workers", [1, 2])
def test_each_failure_is_tried_again_or_marked_and_the_table_says_so(ray_cluster, tmp_path, capsys, workers):
    """Out of memory is tried again, a divergence is not; the good cells are in the table, the others are named."""
    rates = (3e-3, 1e20) if workers == 1 else (3e-3,)  # a divergence among groups is in test_groups.py
    axes = (Axis("model.width", (32, HUGE)), Axis("optimizer.learning_rate", rates))
    retries = 2 - workers  # a new group for each further attempt is in executors/test_drills.py
    options = Options(
        storage=str(tmp_path), retries=retries, workers=workers, cpus_per_trial=1,
        executor="processes" if workers == 1 else "groups",
    )  # fmt: skip
    assert run_sweep(Sweep("failing", tiny(10), axes), options) == SOME_FAILED
    printed = " ".join(capsys.readouterr().out.split())
    frame = results.runs(default_uri(tmp_path)).set_index(["model.width", "optimizer.learning_rate"])
    failed = frame[frame["status"] == "FAILED"]["reason"].to_dict()
    expected = {(32, 1e20): "diverged", (HUGE, 3e-3): "out of memory", (HUGE, 1e20): "out of memory"}
    assert failed == {cell: reason for cell, reason in expected.items() if cell[1] in rates}
    assert frame["status"][32, 3e-3] == "FINISHED"
    assert printed.count("out of memory; attempt 2 of 2 resumes") == retries * len(rates)
    assert "diverged; attempt" not in printed
    assert "failed" in printed.split("failing · tiny")[1]
