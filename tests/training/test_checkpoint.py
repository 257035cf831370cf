"""Checkpoints. Oracle: what was saved, real damage to real files, and a real kill in the middle of writing."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pforce.training import checkpoint
from pforce.training.checkpoint import CheckpointError, Retention, checkpoint_path, snapshot_path

TENSORS = {
    "ema/a": torch.arange(6.0).reshape(2, 3), "model/b": torch.ones(3, dtype=torch.int64), "optimizer/c": torch.ones(2),
}  # fmt: skip


def save(folder: Path, step: int, *, snapshot: bool = False, resumable: bool = True, keep: bool = False) -> Path:
    """One of a training with batch 2, whose tensors tell its step."""
    path = snapshot_path(folder, 2 * step) if snapshot else checkpoint_path(folder, step)
    tensors = {"ema/a": torch.full((2,), float(step)), "optimizer/a": torch.full((2,), float(step))}
    meta = {"identity": "x", "step": step, "images_seen": 2 * step, "keep": keep}
    checkpoint.save(path, tensors, meta, resumable=resumable)
    return path


def newest(folder: Path, at_most: int | None = None) -> int | None:
    found = checkpoint.load_newest(folder, identity="x", at_most=at_most)
    if found is None:
        return None
    assert (found[0]["optimizer/a"] == found[1]["step"]).all()
    return int(found[1]["step"])


def test_round_trip(tmp_path):
    path = checkpoint_path(tmp_path, 3)
    checkpoint.save(path, TENSORS, {"identity": "x", "step": 3, "images_seen": 6, "stream": {"k": [1, 2]}})
    tensors, meta = checkpoint.load(path, resumable=True)
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert meta["step"] == 3
    assert meta["stream"] == {"k": [1, 2]}
    assert set(checkpoint.load(path)[0]) == {"ema/a", "model/b"}, "a measurement reads no moments"


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert stat.S_IMODE((path / checkpoint.META).stat().st_mode) == 0o640


def damage_tensors(path):
    file = path / checkpoint.STATE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate_moments(path):
    file = path / checkpoint.MOMENTS
    file.write_bytes(file.read_bytes()[:-5])


def remove_meta(path):
    (path / checkpoint.META).unlink()


def damage_meta(path):
    (path / checkpoint.META).write_text("{")


def other_format(path):
    meta = json.loads((path / checkpoint.META).read_text())
    (path / checkpoint.META).write_text(json.dumps({**meta, "format": 99}))


HARMS = [damage_tensors, truncate_moments, remove_meta, damage_meta, other_format]


@pytest.mark.parametrize("damage", HARMS)
def test_a_damaged_newest_is_passed_over_with_a_warning(tmp_path, damage):
    for step in (1, 2):
        save(tmp_path, step)
    damage(tmp_path / "checkpoints" / "step_00000002")
    with pytest.warns(UserWarning, match="damaged checkpoint skipped.*step_00000002"):
        assert newest(tmp_path) == 1
    with pytest.raises(CheckpointError, match="step_00000002"):
        checkpoint.load(tmp_path / "checkpoints" / "step_00000002", resumable=True)


def test_nothing_there(tmp_path):
    assert checkpoint.load_newest(tmp_path / "none", identity="x") is None


def test_a_training_goes_on_from_the_nearest_earlier_one(tmp_path):
    """From both kinds; not from a snapshot without moments, nor from one beyond its end."""
    save(tmp_path, 2)
    save(tmp_path, 4, snapshot=True)
    save(tmp_path, 6, snapshot=True, resumable=False)
    save(tmp_path, 8)
    assert [newest(tmp_path, at_most) for at_most in (2, 4, 7, 8, 12, 15, 16, None)] == [None, 2, 2, 4, 4, 4, 8, 8]


def test_retention_keeps_the_newest_two_whole_ones(tmp_path):
    """Snapshots stay, without their moments; one that was asked for as resumable stays wholly."""
    retention = Retention(tmp_path, "x")
    save(tmp_path, 1, snapshot=True, keep=True)
    save(tmp_path, 2, snapshot=True)
    for step in (3, 4, 5):
        retention.trust(save(tmp_path, step))
        retention.apply(2 * step)
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["step_00000004", "step_00000005", "2", "4"]
    assert newest(tmp_path, 5) == 1
    assert checkpoint.load(snapshot_path(tmp_path, 4))[1]["step"] == 2


@pytest.mark.parametrize("damage", HARMS)
def test_retention_never_counts_damaged_ones(tmp_path, damage):
    """Newer ones are damaged: what was just saved stays, and one before it."""
    for step in (2, 3, 8, 9):
        save(tmp_path, step)
    for step in (8, 9):
        damage(checkpoint_path(tmp_path, step))
    save(tmp_path, 4)
    Retention(tmp_path, "x").apply(8)
    for path in (checkpoint_path(tmp_path, step) for step in (3, 4)):
        checkpoint.check(path, resumable=True)
    assert not checkpoint_path(tmp_path, 2).exists()


def test_a_training_that_goes_through_old_images_again_keeps_its_own(tmp_path):
    """A shorter budget after a longer one whose early checkpoints are gone."""
    for step in (8, 9):
        save(tmp_path, step)
    for step in (1, 2, 3):
        save(tmp_path, step)
        Retention(tmp_path, "x").apply(2 * step)
    assert [newest(tmp_path, at_most) for at_most in (4, 7, None)] == [2, 3, 9]
    save(tmp_path, 10)
    Retention(tmp_path, "x").apply(20)
    assert [path.name[-2:] for path in checkpoint.saved(tmp_path)] == ["09", "10"]


@pytest.mark.process
def test_a_kill_while_writing_leaves_whole_checkpoints(tmp_path):
    """A process that saves without end is killed at several moments; what is left always loads."""
    code = (
        "import sys; from pathlib import Path\n"
        "from pforce.training.checkpoint import Retention\n"
        "from tests.training.test_checkpoint import save\n"
        "step, folder = 0, Path(sys.argv[1])\n"
        "retention = Retention(folder, 'x')\n"
        "while True:\n"
        "    step += 1\n"
        "    retention.trust(save(folder, step, snapshot=step % 3 == 0))\n"
        "    retention.apply(2 * step)\n"
    )
    seen = 0
    for wait in (0.05, 0.11, 0.23):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while not checkpoint.saved(tmp_path):
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        step = newest(tmp_path)
        assert step is not None
        seen = max(seen, step)
    assert seen > 1


@pytest.mark.parametrize("name", ["640", "0", "-16", "17", "1e3", "../../x", "9" * 400, "٦٤", ".hidden"])
def test_what_strangers_ask_for_is_a_number_of_images_or_nothing(name):
    """Arabic digits are decimal for Python, and a number of 400 digits is none of images."""
    assert checkpoint.targets_in([name], batch=16) == ({640} if name == "640" else set())
