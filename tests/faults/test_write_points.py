"""A trial killed right before each of its writes, and continued. Oracle: the undisturbed trial."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.drill


@pytest.mark.timeout(600)
def test_a_trial_killed_at_any_write_gives_the_undisturbed_numbers(tmp_path):
    """Trainer and measurer: checkpoints, snapshots, curve, records, what they keep, blocks of drawings, leases."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.write_points", str(tmp_path), "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    points = " ".join(report["points"])
    places = ("checkpoints/", "snapshots/", "curve/", "records/", "files/", "drawings/", "leases/", "experiment.json")
    for place in places:
        assert place in points, f"no write of {place} was seen: {points}"
    for each in report["killed"]:
        assert each["died"] == signal.SIGKILL, each["point"]
        assert each["ended"] == 0, each["point"]
        assert each["found"] == report["expected"], each["point"]
    assert {each["point"] for each in report["killed"]} == set(report["points"])
