"""Decays: branches of a training. Oracle: one uninterrupted training with the same rates, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pforce.base.errors import ConfigError
from pforce.config import Experiment, with_fields
from pforce.orchestration.axes import Axis
from pforce.orchestration.outlook import outlook
from pforce.orchestration.sweep import Sweep
from pforce.records.ledger import Ledger
from pforce.records.row import Row, divergence_of
from pforce.results import runs
from pforce.results.costs import run_costs
from pforce.storage import Storage
from pforce.training import Diverged, checkpoint, loop, train
from pforce.training.checkpoint import snapshot_path
from pforce.training.outcome import Answer, Stopped
from pforce.trial.folder import curve_of
from tests.records.test_attacks import keep, parts_of
from tests.training.conftest import tiny
from tests.training.helpers import start
from tests.training.test_budgets import Steps, numbers, of, steps_of, trial

START, DECAY = 10, 4
"""Steps of the trunk, and of the decay."""


def decayed(steps: int = START + DECAY, decay: int = DECAY, **fields: object) -> Experiment:
    return of(steps, **{"optimizer.decay_images": 16 * decay, **fields})


def branch(root: Path, experiment: Experiment) -> Path:
    return root / "trainings" / parts_of(experiment).training.digest


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Row]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("alone")
    return root, trial(decayed(), root)


def test_the_rate_falls_linearly_to_nothing():
    spec = start(decayed()).spec
    rates = [spec.learning_rate_at(step) / 3e-3 for step in range(START + DECAY)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6, 1.0, 0.75, 0.5, 0.25])
    whole = start(decayed(steps=DECAY)).spec
    assert [whole.learning_rate_at(step) / 3e-3 for step in range(4)] == pytest.approx([0.2, 0.3, 0.3, 0.2])


def test_a_branch_is_one_training_with_these_rates(tmp_path, alone):
    """Before and after its trunk was trained on; weights, averages, moments, curve."""
    root, row = alone
    state = start(decayed())
    train(state, flip=True)
    tensors, _ = checkpoint.load(snapshot_path(branch(root, decayed()), 16 * (START + DECAY)), resumable=True)
    for name, value in (*state.model.state_dict().items(), *state.ema.model.state_dict().items()):
        assert torch.equal(value, tensors[f"model/{name}"]) or torch.equal(value, tensors[f"ema/{name}"]), name
    trial(of(START), tmp_path)
    trial(of(START + 7), tmp_path)
    counted = Steps()
    after = trial(decayed(), tmp_path, counted)
    assert numbers(after) == numbers(row)
    assert counted.steps == list(range(1, START + DECAY + 1)), "the trunk's moments at its start were gone"
    assert steps_of(of(START + 7), tmp_path) == []


def test_trunk_and_branch_share_their_beginning(tmp_path, alone):
    _, row = alone
    trial(of(START), tmp_path)
    counted = Steps()
    assert numbers(trial(decayed(), tmp_path, counted)) == numbers(row)
    assert counted.steps == list(range(START + 1, START + DECAY + 1))
    assert steps_of(of(START + 3), tmp_path) == [START + 1, START + 2, START + 3], "the trunk goes on"
    shorter = decayed(START + 2, 2)
    assert steps_of(shorter, tmp_path) == list(range(1, START + 3)), "the trunk's moments at its start were gone"
    assert steps_of(decayed(), tmp_path) == []


def test_a_stop_reaches_the_trunk(tmp_path, alone):
    """The trunk is stopped as the branch would be, keeps a checkpoint, and goes on there."""

    class Stop(Steps):
        def on_step(self, state: loop.TrainState) -> None:
            super().on_step(state)
            if state.step == START - 3:
                state.answer = Answer.CHECKPOINT_AND_STOP

    stop, counted = Stop(), Steps()
    with pytest.raises(Stopped, match=f"{16 * (START - 3)} images"):
        trial(decayed(), tmp_path, stop)
    assert stop.steps == list(range(1, START - 2))
    assert numbers(trial(decayed(), tmp_path, counted)) == numbers(alone[1])
    assert counted.steps == list(range(START - 2, START + DECAY + 1))


def test_its_curve_is_its_trunks_and_its_own(tmp_path):
    trial(decayed(), tmp_path)
    cell = parts_of(decayed())
    points = curve_of(branch(tmp_path, decayed()), cell.training, until=cell.images_seen)
    assert [point.images_seen for point in points] == [64, 128, 192]


def test_seconds_of_a_trunk_count_once(tmp_path):
    place = Storage.open(tmp_path)
    several = [of(START), decayed(), decayed(START + 2, 2), of(START + 5)]
    for experiment in several:
        trial(experiment, tmp_path)
    keep(place, *several)
    frame = runs(tmp_path)
    of_runs = run_costs(frame)
    own = frame["cost/training_seconds"] - frame["cost/trunk_seconds"].fillna(0.0)
    trunk = frame.loc[frame["trunk"].isna(), "cost/training_seconds"].max()
    expected = trunk + own[frame["trunk"].notna()].sum() + frame["cost/evaluation_seconds"].sum()
    assert of_runs["seconds"].sum() == pytest.approx(expected)
    assert of_runs["images"].sum() == 16 * (START + 5 + DECAY + 2)


def test_a_table_counts_a_trunk_once():
    sweep = Sweep("s", decayed(), (Axis("optimizer.decay_images", (0, 16 * 2, 16 * DECAY)),))
    found = outlook(sweep.cells())
    assert found.images_trained == 16 * (START + DECAY) + 16 * 2 + 16 * DECAY
    assert found.trainings == 3


def test_snapshots_of_a_decayed_training_are_decayed_each(tmp_path):
    sweep = Sweep("s", decayed(20, **{"training.snapshots": (16 * 12,)}), (Axis("timesteps.m", (0.7,)),))
    taken = [steps_of(cell.experiment, tmp_path) for cell in sweep.cells()]
    assert taken == [list(range(1, 13)), list(range(9, 21))], "trunks to 8 and 16, and their branches"


def test_a_branch_of_what_diverged_is_not_tried(tmp_path, monkeypatch):
    taken, step = [], loop._step

    def bad(state, forward, flip):
        taken.append(state.step)
        found = step(state, forward, flip)
        return found * float("nan") if state.step == 5 else found

    monkeypatch.setattr(loop, "_step", bad)
    with pytest.raises(Diverged):
        trial(decayed(), tmp_path)
    count = len(taken)
    assert divergence_of(parts_of(decayed()), Ledger(Storage.open(tmp_path))) is not None
    assert divergence_of(parts_of(decayed(6, 2)), Ledger(Storage.open(tmp_path))) is None, "it begins before"
    with pytest.raises(Diverged):
        trial(decayed(), tmp_path)
    assert len(taken) == count


@pytest.mark.parametrize("images", [16 * 21, 17, -16])
def test_decays_that_do_not_fit_are_refused(images):
    with pytest.raises(ConfigError, match=r"optimizer\.decay_images = "):
        with_fields(tiny(20), {"optimizer.decay_images": images})
