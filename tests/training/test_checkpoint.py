"""Checkpoints. Oracle: what was saved, real damage to real files, and a real kill in the middle of writing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from pforce.training import checkpoint
from pforce.training.checkpoint import CheckpointError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int64)}


def test_round_trip(tmp_path):
    path = checkpoint.save(tmp_path, 3, TENSORS, {"identity": "x", "stream": {"k": [1, 2]}})
    tensors, meta = checkpoint.load(path)
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert meta["step"] == 3
    assert meta["stream"] == {"k": [1, 2]}


def damage_tensors(path):
    file = path / checkpoint.STATE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate_tensors(path):
    file = path / checkpoint.STATE
    file.write_bytes(file.read_bytes()[:-5])


def remove_meta(path):
    (path / checkpoint.META).unlink()


def damage_meta(path):
    (path / checkpoint.META).write_text("{")


def other_format(path):
    meta = json.loads((path / checkpoint.META).read_text())
    (path / checkpoint.META).write_text(json.dumps({**meta, "format": 99}))


@pytest.mark.parametrize("damage", [damage_tensors, truncate_tensors, remove_meta, damage_meta, other_format])
def test_a_damaged_newest_is_passed_over_with_a_warning(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"a": torch.full((2,), float(step))}, {"identity": "x"})
    damage(tmp_path / "step_00000002")
    with pytest.warns(UserWarning, match="damaged checkpoint passed over.*step_00000002"):
        found = checkpoint.load_newest(tmp_path, identity="x")
    assert found is not None
    assert found[1]["step"] == 1
    with pytest.raises(CheckpointError, match="step_00000002"):
        checkpoint.load(tmp_path / "step_00000002")


def test_nothing_there(tmp_path):
    assert checkpoint.load_newest(tmp_path / "none", identity="x") is None


def test_a_kill_while_writing_leaves_whole_checkpoints(tmp_path):
    """A process that saves without end is killed at several moments; what is left always loads."""
    code = (
        "import sys, torch; from pathlib import Path; from pforce.training import checkpoint\n"
        "step = 0\n"
        "while True:\n"
        "    step += 1\n"
        "    checkpoint.save(Path(sys.argv[1]), step, {'a': torch.full((200_000,), float(step))}, {'identity': 'x'})\n"
    )
    seen = 0
    for wait in (0.05, 0.11, 0.23):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while not checkpoint.checkpoints(tmp_path):
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = checkpoint.load_newest(tmp_path, identity="x")
        assert found is not None
        assert (found[0]["a"] == found[1]["step"]).all()
        seen = max(seen, found[1]["step"])
    assert seen > 1
