"""Budgets: a longer training goes on, a shorter one gets its own weights. Oracle: the training of that budget alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pforce.base.errors import ConfigError
from pforce.config import Experiment, with_fields
from pforce.orchestration.axes import Axis
from pforce.orchestration.sweep import Sweep
from pforce.records.ledger import Ledger
from pforce.records.row import Row
from pforce.storage import Storage
from pforce.training import Callback, checkpoint
from pforce.training.checkpoint import snapshot_path
from pforce.training.curve import read_curve, segments
from pforce.trial.run import run_trial
from pforce.trial.source import tensors_hash
from pforce.trial.watch import Watch
from pforce.trial.where import Paths, Where
from tests.training.conftest import DATA, tiny

CPU = torch.device("cpu")
SHORT, LONG = 10, 21
"""Steps of 16 images. No multiples of the log interval, and no checkpoint at the shorter one."""


def of(steps: int, **fields: object) -> Experiment:
    changes = {"training.log_every": 4, "training.checkpoint_every": 6, "evaluation.images": 4, **fields}
    return with_fields(tiny(steps), changes)


class Steps(Callback):
    """Counts steps, and may do something at one."""

    def __init__(self, at: int = -1, then: Callable[[], None] = lambda: None) -> None:
        self.steps: list[int] = []
        self.at, self.then = at, then

    def on_step(self, state) -> None:
        self.steps.append(state.step)
        if state.step == self.at:
            self.then()


def trial(experiment: Experiment, root: Path, *callbacks: Callback) -> Row:
    where = Where(CPU, callbacks=callbacks)
    row = run_trial(experiment, Paths(DATA, Storage.open(root)), where)
    assert isinstance(row, Row)
    return row


def steps_of(experiment: Experiment, root: Path) -> list[int]:
    """The steps that a call takes."""
    counted = Steps()
    trial(experiment, root, counted)
    return counted.steps


def numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.metrics.items() if not name.startswith(("cost/", "throughput/"))}


def training(root: Path) -> Path:
    (folder,) = root.glob("trainings/*")
    return folder


def losses(root: Path) -> list[tuple[int, float, float]]:
    return [(point.images_seen, point.loss, point.gradient_norm) for point in read_curve(training(root))]


def same_snapshot(a: Path, b: Path, images: int) -> bool:
    """Weights, averages, moments, data position and the open log window, bit for bit."""
    found = [checkpoint.load(snapshot_path(training(root), images), resumable=True) for root in (a, b)]
    (tensors, meta), (others, other) = found
    same = tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    return same and meta["stream"] == other["stream"] and meta["window"]["rows"] == other["window"]["rows"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Row]]:
    """Each budget in a storage of its own."""
    torch.set_num_threads(1)
    found = {}
    for steps in (SHORT, LONG):
        root = tmp_path_factory.mktemp(f"alone{steps}")
        found[steps] = (root, trial(of(steps), root))
    return found


def test_a_longer_budget_goes_on_bit_for_bit(tmp_path, alone):
    root, row = alone[LONG]
    trial(of(SHORT), tmp_path)
    counted = Steps()
    longer = trial(of(LONG), tmp_path, counted)
    assert counted.steps == list(range(SHORT + 1, LONG + 1))
    assert numbers(longer) == numbers(row)
    assert same_snapshot(tmp_path, root, 16 * LONG)
    assert losses(tmp_path) == losses(root)
    assert [images for images, _, _ in losses(root)] == [64, 128, 192, 256, 320], "the ends forced no point"
    assert numbers(trial(of(SHORT), tmp_path)) == numbers(alone[SHORT][1])
    assert longer.metrics["cost/training_seconds"] > trial(of(SHORT), tmp_path).metrics["cost/training_seconds"]


def test_a_shorter_budget_gets_exactly_its_own(tmp_path, alone):
    """Trained afresh only where no snapshot is there, from the nearest earlier one that can be gone on from."""
    trial(of(LONG), tmp_path)
    counted = Steps()
    shorter = trial(of(SHORT), tmp_path, counted)
    assert counted.steps == list(range(1, SHORT + 1))
    assert numbers(shorter) == numbers(alone[SHORT][1])
    assert steps_of(of(SHORT), tmp_path) == []
    assert steps_of(of(LONG), tmp_path) == [], "what is longer is still there"
    assert steps_of(of(LONG + 2), tmp_path) == [LONG + 1, LONG + 2]
    assert losses(tmp_path) == losses(alone[LONG][0])


def test_what_is_kept_as_resumable_is_gone_on_from(tmp_path, alone):
    trial(of(LONG, **{"training.resumable": (64,)}), tmp_path)
    counted = Steps()
    assert numbers(trial(of(SHORT), tmp_path, counted)) == numbers(alone[SHORT][1])
    assert counted.steps == list(range(5, SHORT + 1))


def test_snapshots_are_rows_of_one_training(tmp_path, alone):
    """In whatever order they are asked for; seconds count once."""
    sweep = Sweep("s", of(LONG, **{"training.snapshots": (64, 16 * SHORT)}), (Axis("timesteps.m", (0.7,)),))
    assert sweep.headers == ["m", "images_seen"]
    cells = [cell.experiment for cell in sweep.cells()]
    assert [cell.training.images for cell in cells] == [64, 16 * SHORT, 16 * LONG]
    taken = [steps_of(cell, tmp_path) for cell in cells]
    assert [step for steps in taken for step in steps] == list(range(1, LONG + 1))
    rows = [trial(cell, tmp_path) for cell in cells]
    assert [numbers(row) for row in rows[1:]] == [numbers(alone[steps][1]) for steps in (SHORT, LONG)]
    seconds = [row.metrics["cost/training_seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert checkpoint.load(snapshot_path(training(tmp_path), 16 * LONG))[1]["seconds"] == seconds[-1]


def test_one_training_takes_all_its_snapshots_on_the_way(tmp_path, alone):
    counted = Steps()
    trial(of(LONG, **{"training.snapshots": (64, 16 * SHORT)}), tmp_path, counted)
    assert counted.steps == list(range(1, LONG + 1))
    assert numbers(trial(of(SHORT), tmp_path, counted)) == numbers(alone[SHORT][1])
    assert len(counted.steps) == LONG
    assert losses(tmp_path) == losses(alone[LONG][0]), "snapshots force no point of the curve"


def test_a_running_training_leaves_what_others_ask_for(tmp_path, alone):
    """The other cell waits, and gets its snapshot without a step of its own while the training still runs."""
    other, waiting = Steps(), threading.Event()
    found: list[Row] = []

    def ask() -> None:
        where = Where(CPU, callbacks=[other], watch=Watch(waits=lambda holder: waiting.set()))
        row = run_trial(of(SHORT), Paths(DATA, Storage.open(tmp_path)), where)
        assert row is not None
        found.append(row)

    thread = threading.Thread(target=ask)

    def begin() -> None:
        thread.start()
        assert waiting.wait(60)

    trial(of(LONG), tmp_path, Steps(5, begin), Steps(SHORT + 4, lambda: thread.join(60)))
    assert len(found) == 1, "it waited for the end"
    assert other.steps == []
    assert numbers(found[0]) == numbers(alone[SHORT][1])
    assert not list((training(tmp_path) / "wanted").iterdir())


@pytest.mark.parametrize("harm", ["missing", "damaged", "another's"])
def test_a_snapshot_that_is_not_what_its_record_says(tmp_path, alone, harm):
    """It is said, and made again; the same numbers."""
    trial(of(LONG, **{"training.snapshots": (16 * SHORT,)}), tmp_path)
    path = snapshot_path(training(tmp_path), 16 * SHORT)
    if harm == "missing":
        shutil.rmtree(path)
    elif harm == "damaged":
        (path / "state.safetensors").write_bytes(b"cut off")
    else:
        tensors, meta = checkpoint.load(path)
        changed = {name: value + 1 for name, value in tensors.items()}
        checkpoint.save(path, changed, {k: v for k, v in meta.items() if k != "checksum"}, resumable=False)
    asked = of(SHORT, **{"evaluation.metrics": ("frechet", "kernel")})
    if harm == "missing":
        row = trial(asked, tmp_path)
    else:
        with pytest.warns(UserWarning, match="skipped"):
            row = trial(asked, tmp_path)
    shared = {name: value for name, value in numbers(row).items() if not name.startswith("kd")}
    assert shared == numbers(alone[SHORT][1])
    assert len(list(Ledger(Storage.open(tmp_path)).all("weights"))) == 2


def test_who_finds_other_weights_there_drops_his_own(tmp_path, alone):
    """Another process, on hardware that rounds differently, has published meanwhile: its weights are measured."""
    tensors, meta = checkpoint.load(snapshot_path(training(alone[SHORT][0]), 16 * SHORT), resumable=True)
    others = {name: value + 1e-3 if name.startswith("ema/") else value for name, value in tensors.items()}
    place, found = Storage.open(tmp_path), []

    def publish() -> None:
        path = snapshot_path(training(tmp_path), 16 * SHORT)
        checkpoint.save(path, others, {name: value for name, value in meta.items() if name != "checksum"})
        own = alone[SHORT][1].weights
        averaged = {name.removeprefix("ema/"): value for name, value in others.items() if name.startswith("ema/")}
        values = {**own.values, "tensors": tensors_hash(of(SHORT).model, averaged)}
        found.append(Ledger(place).put(dataclasses.replace(own, values=values)))

    with pytest.warns(UserWarning, match="another process has left other weights"):
        row = trial(of(SHORT), tmp_path, Steps(5, publish))
    assert row.weights == found[0]
    assert numbers(row) != numbers(alone[SHORT][1])
    assert numbers(trial(of(SHORT), tmp_path)) == numbers(row)


def test_a_kill_between_a_checkpoint_and_its_segment_loses_no_point(tmp_path, alone):
    """The checkpoint holds the points of its segment."""
    trial(of(SHORT), tmp_path)
    for path in segments(training(tmp_path)):
        if path.name.startswith("128"):
            path.unlink()
    trial(of(LONG), tmp_path)
    assert losses(tmp_path) == losses(alone[LONG][0])


def test_a_damaged_segment_is_said(tmp_path):
    trial(of(LONG), tmp_path)
    path = segments(training(tmp_path))[0]
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    said: list[str] = []
    found = read_curve(training(tmp_path), say=said.append)
    assert [path.name in line for line in said] == [True]
    assert 0 < len(found) < LONG // 4


@pytest.mark.parametrize("field", ["snapshots", "resumable"])
@pytest.mark.parametrize("images", [0, -16, 17, 16 * LONG + 16])
def test_targets_that_no_training_can_have_are_refused(field, images):
    with pytest.raises(ConfigError, match="multiples of the batch 16"):
        of(LONG, **{f"training.{field}": (images,)})


def test_targets_are_no_part_of_a_name(alone):
    root, _ = alone[SHORT]
    assert json.loads((training(root) / "experiment.json").read_text())["training"]["snapshots"] == []
    assert steps_of(of(SHORT, **{"training.snapshots": (64,), "training.resumable": (64,)}), root) == []
