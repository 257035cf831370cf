"""Drill (f): the disk fills up in the middle of a training. A real, small file system (tmpfs in a mount namespace of
its own); oracle: exit codes, the checkpoints on it, and the same command after room was made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pforce.base.console import DONE, SOME_FAILED, STOPPED
from tests.faults.drills import moments

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("full_disk.py")


def unshare() -> list[str]:
    """The command that gives a mount namespace; the test is skipped, saying so, where this machine allows none."""
    for options in (["-m"], ["-r", "-m"]):
        probe = ["unshare", *options, "sh", "-c", "mount -t tmpfs none /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return ["unshare", *options]
    pytest.skip("a file system that is full needs a mount namespace (unshare), which this machine does not allow")


@pytest.fixture(scope="module")
def report(tmp_path_factory, openmoji_folder) -> dict[str, dict[str, object]]:
    """What became of both kinds of call, each on a disk of its own."""
    folder = tmp_path_factory.mktemp("disks")
    rooms = map(str, moments("disk", 150, 550))
    done = subprocess.run(
        [*unshare(), sys.executable, str(SCRIPT), str(folder), *rooms],
        capture_output=True, text=True, check=False, timeout=580, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("kind", ["train", "sweep"])
def test_a_full_disk_stops_the_sweep_and_keeps_the_last_checkpoint(report, kind):
    """Exit code 4 with the cure, a whole checkpoint on the disk, nothing RUNNING; with room the same command ends."""
    found = report[kind]
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


def test_a_notice_on_a_full_disk_keeps_the_checkpoint_before_it(report):
    """It cannot be saved, so it ends with the cure instead of training on what may be lost; nothing is damaged."""
    found = report["notice"]
    assert found["first"]["code"] == STOPPED, found["first"]["output"]
    said = " ".join(found["first"]["output"].split())
    assert "the disk is full" in said
    assert "Traceback" not in said
    assert found["newest"] == 1, "the first notice's"
    assert found["whole"]
    assert found["second"]["code"] == DONE, found["second"]["output"]
    assert found["repeated_before_checkpoint"] == []


def test_pictures_that_a_full_disk_refuses_are_added_once_there_is_room(report):
    """The numbers are shown all the same, and the runs are named."""
    found = report["pictures"]
    code, said = found["full"]
    assert code == SOME_FAILED
    assert "No space left on device" in said
    assert "2 refused: mend what refuses them, and the same command shows them" in said
    assert found["metrics"]
    assert found["room"][0] == DONE
    assert {"samples.png", "uncertainty_maps.png", "sweep.html", "table.json"} <= set(found["files"])
