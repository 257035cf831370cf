"""Searches that are killed, and go on. Oracle: the same search that nobody has disturbed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from pforce import results
from pforce.base.console import DONE
from tests.faults.drills import SEED
from tests.support.clock import PATIENCE
from tests.support.starts import PFORCE, Start

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]
MINE = "from tests.training.conftest import tiny\n\n\ndef small():\n    return tiny(25)\n"


def trainings(folder: Path) -> tuple[list[str], str]:
    """Command and name of a search over trainings."""
    (folder / "mine.py").write_text(MINE)
    return [
        PFORCE, "sweep", f"{folder / 'mine.py'}:small", "--axis", "timesteps.m=-1..1.5", "--axis",
        "timesteps.s=0.5..1.5", "--axis", "timesteps.sigma=0.05..1", "--axis", "flow.difficulty_weight=log:0.001..1",
        "--search", "tpe", "--trials", "14", "--executor", "local", "--name", "searched",
    ], "searched"  # fmt: skip


def samplers(folder: Path, model: Path) -> tuple[list[str], str]:
    """Command and name of a search over one model's samplers."""
    return [
        "-m", "pforce_experiments.sweeps.sampler_thresholds", str(model), "--search", "nsga2", "--trials", "16",
        "--images", "16", "--reference-images", "16", "--nfe", "6", "12", "--executor", "local", "--name", "searched",
    ], "searched"  # fmt: skip


def studied(storage: Path) -> list[tuple[dict[str, object], list[float], TrialState]]:
    """The trials of the study in a storage, as Optuna reads them."""
    of = JournalStorage(JournalFileBackend(str(storage / "studies" / "searched.journal")))
    (name,) = optuna.get_all_study_names(of)
    trials = optuna.load_study(study_name=name, storage=of).trials
    return [(dict(trial.params), list(trial.values or []), trial.state) for trial in trials]


def ended(words: Sequence[str], log: Path) -> int:
    return Start(words, log=log).wait(timeout=120 * PATIENCE)


@pytest.mark.parametrize("kind", [trainings, samplers])
def test_a_search_killed_at_three_moments_ends_as_if_it_had_not_been(kind: Callable[..., object], trained, tmp_path):
    words, name = trainings(tmp_path) if kind is trainings else samplers(tmp_path, trained)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    started = time.monotonic()
    assert ended([*words, "--storage", str(calm)], tmp_path / "calm.log") == DONE, (tmp_path / "calm.log").read_text()
    whole = time.monotonic() - started
    moments, kills = random.Random(f"{kind.__name__}-{SEED}"), 0
    while kills < 3:
        process = Start([*words, "--storage", str(killed)], log=tmp_path / "killed.log")
        there = len(list((killed / "records").rglob("*.json")))
        while len(list((killed / "records").rglob("*.json"))) <= there and process.poll() is None:
            time.sleep(0.01)  # something is measured between two kills
        time.sleep(moments.uniform(0, whole / 12))
        assert process.poll() is None, "it is killed before it ends"
        process.kill()
        process.wait()
        kills += 1
    assert ended([*words, "--storage", str(killed)], tmp_path / "killed.log") == DONE
    assert studied(killed) == studied(calm)
    frames = [results.runs(storage, sweep=name).set_index("run_name").sort_index() for storage in (calm, killed)]
    numbers = [frame.filter(regex="^(val|fd|difficulty|cost/nfe)").astype(float) for frame in frames]
    pd.testing.assert_frame_equal(*numbers, check_exact=True)
