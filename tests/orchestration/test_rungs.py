"""Early stopping at rungs: real trainings, real studies. Oracles: counted steps, trainings that nothing has stopped,
and the rules of successive halving and of the median worked out by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pforce import results
from pforce.base.console import DONE
from pforce.base.errors import ConfigError, FieldError
from pforce.commands.command_line import parse
from pforce.commands.sweep_arguments import SweepArguments
from pforce.metrics.names import VALIDATION_LOSS
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.rungs import RungSettings, goes_on
from pforce.orchestration.script import run_sweep
from pforce.orchestration.search_goal import SearchSettings
from pforce.orchestration.sweep import Sweep
from tests.orchestration.test_search import Steps
from tests.training.conftest import tiny

RATES = (1e-5, 3e-3, 1e-4, 1e-2, 3e-5, 1e-3, 2e-5, 3e-4, 5e-5)
RUNG, STEPS = 2, 6
HALVING = RungSettings("halving", (16 * RUNG,))


def deciding(settings: RungSettings, values: list[list[float]], *, rungs: int = 1, maximize: bool = False) -> list[int]:
    """Numbers of the trials that go on."""
    known = tuple((n, tuple(each)) for n, each in enumerate(values))
    return [n for n in range(len(values)) if goes_on(settings, "s", len(values), known, n, rungs=rungs,
                                                     maximize=maximize)]  # fmt: skip


def test_of_nine_the_best_three_go_on_and_of_three_the_best():
    losses = [0.9, 0.2, 0.8, 0.1, 0.7, 0.6, 0.3, 0.5, 0.4]
    assert deciding(HALVING, [[loss] for loss in losses]) == [1, 3, 6]
    assert deciding(HALVING, [[loss] for loss in losses], maximize=True) == [0, 2, 4]
    two = [[loss, 1 - loss] if loss < 0.35 else [loss] for loss in losses]
    known = tuple((n, tuple(each)) for n, each in enumerate(two))
    kept = [n for n in (1, 3, 6) if goes_on(HALVING, "s", 9, known, n, rungs=2, maximize=False)]
    assert kept == [6], "its second value is the smallest"


def test_what_is_no_number_stops():
    assert deciding(HALVING, [[0.3], [float("nan")], [0.2], [float("inf")], [0.1], [0.5]]) == [4]


def test_the_median_stops_the_worse_half_once_there_are_enough():
    median = RungSettings("median", (32,))
    assert deciding(median, [[each / 10] for each in range(7)]) == [0, 1, 2, 3]
    assert deciding(median, [[0.3], [0.2], [0.9]]) == [0, 1, 2], "too few to say"


def test_hyperband_keeps_some_of_each_bracket():
    """A bracket without a first rung keeps all of its trials there; the others keep the best third."""
    hyperband = RungSettings("hyperband", (32,))
    kept = deciding(hyperband, [[each / 30] for each in range(30)])
    assert 10 <= len(kept) < 30
    assert 0 in kept


def searched(folder: Path, callback: Steps, settings: RungSettings | None = HALVING, method: str = "grid", **options):
    sweep = Sweep("s", tiny(STEPS), (Axis("optimizer.learning_rate", RATES),), points=())
    search = SearchSettings(method, options.pop("trials", 100), early=settings, **options)
    chosen = Options(storage=str(folder), executor="local")
    return run_sweep(sweep, chosen, search=search, callbacks=[callback])


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine trials, of which six stop at the rung."""
    folder, steps = tmp_path_factory.mktemp("halved"), Steps()
    assert searched(folder, steps) == DONE
    assert steps.count == 9 * RUNG + 3 * (STEPS - RUNG)
    return folder


@pytest.mark.process
def test_the_table_shows_whole_trials_first_and_where_the_others_stopped(halved):
    table = pd.read_csv(halved / "s.csv")
    assert len(table) == 9
    assert list(table["verdict"]).count("stopped at 32") == 6
    assert list(table["images seen"]) == [96] * 3 + [32] * 6
    assert table["fd/openmoji"].notna().tolist() == [True] * 3 + [False] * 6
    assert "6 trials stopped early: 6 at 32 images seen" in (halved / "s.md").read_text()


@pytest.mark.process
def test_those_that_go_on_end_as_if_nothing_had_stopped_and_were_the_best_at_the_rung(halved, tmp_path):
    steps = Steps()
    assert searched(tmp_path, steps, None) == DONE
    assert steps.count == 9 * STEPS
    whole, some = (results.runs(each, sweep="s") for each in (tmp_path, halved))
    ended = some[some["cost/images_seen"] == 96].set_index("fingerprint")
    at_rung = some[some["cost/images_seen"] == 32]
    assert len(at_rung) == 9
    for cell, row in ended.iterrows():
        same = whole.set_index("fingerprint").loc[cell]
        assert row[VALIDATION_LOSS] == same[VALIDATION_LOSS]
        assert row["fd/openmoji"] == same["fd/openmoji"]
    best = set(at_rung.sort_values(VALIDATION_LOSS)["optimizer.learning_rate"][:3])
    assert set(ended["optimizer.learning_rate"]) == best


@pytest.mark.drill
def test_a_search_that_is_killed_goes_on_to_the_same_end(halved, tmp_path):
    """Stopped among the rungs, and again among the whole trials: no step is done twice."""
    counts = []
    for until in (7, 18, None):
        steps = Steps(until)
        searched(tmp_path, steps)
        counts.append(steps.count)
    assert sum(counts) <= 9 * RUNG + 3 * (STEPS - RUNG) + 4, "and those since the last rung"
    tables = [pd.read_csv(folder / "s.csv")[["verdict", "val loss"]] for folder in (halved, tmp_path)]  # fmt: skip
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.process
def test_a_longer_budget_resumes_stopped_trials(halved, tmp_path):
    """A sweep of the same trainings, all to their end: those that stopped are trained from their rung."""
    folder, steps = tmp_path / "copy", Steps()
    shutil.copytree(halved, folder)
    sweep = Sweep("whole", tiny(STEPS), (Axis("optimizer.learning_rate", RATES),))
    assert run_sweep(sweep, Options(storage=str(folder), executor="local"), callbacks=[steps]) == DONE
    assert steps.count == 6 * (STEPS - RUNG)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--early-stop", "pbt"), "population based training changes a training's settings on the way"),
        (("--early-stop", "halv"), "halving"),
        (("--rungs", "64"), "given with --early-stop"),
        (("--early-stop", "halving", "--reduction", "1"), "2 to 100"),
    ],
)
def test_wrong_options_are_refused(words, told, capsys):
    command = ["openmoji32_micro", "--axis", "optimizer.learning_rate=0.1,0.2", *words]
    with pytest.raises((ConfigError, FieldError), match=told):
        parse(SweepArguments, "pforce sweep", command).searching.settings(None)


@pytest.mark.process
@pytest.mark.parametrize("rungs", [(96,), (40,), (160, 32)])
def test_a_rung_beyond_the_budget_is_refused_before_anything_starts(tmp_path, rungs):
    with pytest.raises(FieldError, match="below the budget of 96 images"):
        searched(tmp_path, Steps(), RungSettings("halving", rungs))
