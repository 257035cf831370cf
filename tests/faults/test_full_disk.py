"""Drill (f): the disk fills up in the middle of a training. A real, small file system (tmpfs in a mount namespace of
its own); oracle: exit codes, the checkpoints on it, and the same command after room was made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pforce.base.console import DONE, STOPPED
from tests.faults.drills import moments

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("full_disk.py")


def unshare() -> list[str]:
    """The command that gives a mount namespace; the test is skipped, saying so, where this machine allows none."""
    for options in (["-m"], ["-r", "-m"]):
        probe = ["unshare", *options, "sh", "-c", "mount -t tmpfs none /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return ["unshare", *options]
    pytest.skip("a file system that is full needs a mount namespace (unshare), which this machine does not allow")


@pytest.mark.parametrize(
    ("kind", "kilobytes"), [("train", moments("disk", 150, 550)[0]), ("sweep", moments("disk", 150, 550)[1])]
)
def test_a_full_disk_stops_the_sweep_and_keeps_the_last_checkpoint(tmp_path, openmoji_folder, kind, kilobytes):
    """Exit code 4 with the cure, a whole checkpoint on the disk, nothing RUNNING; with room the same command ends."""
    report = tmp_path / "report.json"
    command = [*unshare(), sys.executable, str(SCRIPT), kind, str(kilobytes), str(tmp_path / "disk"), str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["first"]["code"] == STOPPED, found["first"]["output"]
    said = " ".join(found["first"]["output"].split())
    assert "the disk is full" in said
    assert "Make room" in said
    assert "Traceback" not in said
    assert found["newest"] >= 0, "there was a checkpoint, and it was kept"
    assert found["whole"], "the newest checkpoint on the full disk is whole"
    assert "RUNNING" not in found["statuses"]
    assert found["second"]["code"] == DONE, found["second"]["output"]
    assert found["end"] == ["FINISHED"]
    assert found["repeated_before_checkpoint"] == []
