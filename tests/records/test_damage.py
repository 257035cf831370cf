"""Every file that a result relies on, damaged in five ways: the same numbers again or one line, never other numbers.

Oracle: the numbers of an undamaged storage. After the damage the same cell is asked for, and another one with one
metric more, more images and another timestep, so that each file is needed: records, what they keep, blocks of drawings,
the reference, the checkpoint and the shards.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pforce.config import Experiment, with_fields
from pforce.data import DataError
from pforce.records.row import Row
from pforce.storage import Storage
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.training.conftest import DATA, tiny

pytestmark = pytest.mark.drill

TIMES = ("cost/", "throughput/")

FIRST = with_fields(tiny(6), {"evaluation.images": 60, "evaluation.batch": 8})  # no whole block, so that one goes on
ASKED = with_fields(FIRST, {
    "evaluation.images": 68, "evaluation.metrics": ["frechet", "kernel"],
    "evaluation.difficulty_timesteps": [0.2, 0.35, 0.6],
})  # fmt: skip


def run(experiment: Experiment, folder: Path) -> dict[str, float]:
    """The numbers of a cell, without what it took."""
    row = run_trial(experiment, Paths(folder / "data", Storage.open(folder / "runs")), Where(torch.device("cpu")))
    assert isinstance(row, Row)
    return {name: value for name, value in row.metrics.items() if not name.startswith(TIMES)}


def both(folder: Path) -> list[dict[str, float]] | DataError:
    """The numbers of both cells, or why there are none."""
    try:
        return [run(experiment, folder) for experiment in (FIRST, ASKED)]
    except DataError as error:
        return error


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the first cell, and its shards."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(DATA, folder / "data")
    run(FIRST, folder)
    return folder


@pytest.fixture(scope="module")
def oracle(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """What both give where nothing is damaged."""
    folder = tmp_path_factory.mktemp("oracle")
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    found = both(folder)
    assert isinstance(found, list)
    return found


def of_kind(kind: str) -> Callable[[Path], list[Path]]:
    """Records of a kind."""
    return lambda folder: [
        path for path in sorted(folder.glob("runs/records/*/*.json")) if json.loads(path.read_text())["kind"] == kind
    ]


def matching(pattern: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(folder.glob(pattern))


FILES: dict[str, Callable[[Path], list[Path]]] = {
    **{f"record of {kind}": of_kind(kind) for kind in ("training", "weights", "drawing", "image_metric", "held_out")},
    "arrays": matching("runs/files/*/*"),
    "features": matching("runs/drawings/*/openmoji*/*.npz"),
    "images": matching("runs/drawings/*/images/*.npz"),
    "reference": matching("runs/references/*"),
    "tensors": matching("runs/trainings/*/*/*/state.safetensors"),
    "moments": matching("runs/trainings/*/*/*/moments.safetensors"),
    "meta": matching("runs/trainings/*/*/*/meta.json"),
    "snapshot's tensors": matching("runs/trainings/*/snapshots/*/state.safetensors"),
    "snapshot's meta": matching("runs/trainings/*/snapshots/*/meta.json"),
    "curve": matching("runs/trainings/*/curve/*.jsonl"),
    "experiment": matching("runs/trainings/*/experiment.json"),
    "training shard": lambda folder: sorted(folder.glob("data/train-*.tar"))[:1],
    "held-out shard": lambda folder: sorted(folder.glob("data/validation-*.tar"))[:1],
    "manifest": matching("data/manifest.json"),
}  # fmt: skip


def digit(content: bytes) -> bytes:
    """One digit in the second half, or one bit where there is none."""
    half = len(content) // 2
    for place in range(half, len(content)):
        if content[place : place + 1].isdigit():
            other = b"5" if content[place : place + 1] != b"5" else b"4"
            return content[:place] + other + content[place + 1 :]
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


HARMS: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "digit": digit,
    "doubled": lambda content: content * 2,
    "missing": lambda content: None,
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("file", FILES)
def test_damage_gives_the_same_numbers_or_one_line(whole, oracle, tmp_path, file, harm):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    paths = FILES[file](tmp_path)
    assert paths, "there is no such file: the test would damage nothing"
    for path in paths:
        content = HARMS[harm](path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = both(tmp_path)
    if isinstance(found, DataError):  # nothing is made of other pictures; a line says which file, and what to do
        assert file in ("training shard", "held-out shard", "manifest")
        assert paths[0].name in str(found)
        assert "\n" not in str(found)
        return
    assert found == oracle
    assert len({str(warning.message) for warning in said}) <= 2 * len(paths) + 1
    if harm != "missing" and file.startswith("record of"):
        assert any(paths[0].name in str(warning.message) for warning in said)
