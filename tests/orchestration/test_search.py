"""Searches over trainings: real trainings, a real study. Oracles: an undisturbed search, the records, counted steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, make_console
from pforce.base.errors import ConfigError, FieldError
from pforce.metrics.names import VALIDATION_LOSS
from pforce.orchestration.axes import Axis
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.options import Options
from pforce.orchestration.plan import plan
from pforce.orchestration.script import run_sweep
from pforce.orchestration.search import Search
from pforce.orchestration.search_goal import SearchSettings
from pforce.orchestration.study import Study
from pforce.orchestration.sweep import Sweep
from pforce.records.sweeps import read_sweeps
from pforce.storage import Storage
from pforce.training import Callback, Record, TrainState
from tests.training.conftest import tiny

pytestmark = pytest.mark.process
AXES = ("timesteps.m=-1..1", "timesteps.sigma=0.1..1")


class Steps(Callback):
    """Counts training steps, and can stop the process in one of them."""

    def __init__(self, until: int | None = None) -> None:
        self.count, self.until = 0, until

    def on_record(self, state: TrainState, record: Record) -> None:
        self.count += 1
        if self.count == self.until:
            raise KeyboardInterrupt("a test")


def searched(
    folder: Path, trials: int | None = 3, *axes: str, method: str = "tpe", callback: Callback | None = None,
    seeds: int = 1, options: dict[str, object] | None = None, **settings: object,
) -> int:  # fmt: skip
    space = tuple(map(parse_axis, axes or AXES))
    sweep = Sweep("s", tiny(6), space, tuple(range(seeds)), points=())
    search = SearchSettings(method, 100 if trials is None else trials, **settings)  # type: ignore[arg-type]
    chosen = {"executor": "local", **(options or {})}
    return run_sweep(
        sweep, Options(storage=str(folder), **chosen), search=search,  # type: ignore[arg-type]
        callbacks=[callback] if callback else [],
    )  # fmt: skip


def table(folder: Path) -> dict[str, float]:
    """Label → validation loss of the finished cells of the sweep."""
    frame = results.runs(folder, sweep="s")
    return {} if frame.empty else dict(zip(frame["run_name"], frame[VALIDATION_LOSS], strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of five trials that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert searched(folder, 5) == DONE
    return folder


def test_a_search_continues_to_more_trials(undisturbed, tmp_path, capsys):
    steps = Steps()
    assert searched(tmp_path, 2, callback=steps) == DONE
    assert steps.count == 12
    assert searched(tmp_path, 2, callback=steps) == DONE
    assert steps.count == 12, "nothing is trained again"
    capsys.readouterr()
    assert searched(tmp_path, 5, callback=steps) == DONE
    assert steps.count == 30
    assert table(tmp_path) == table(undisturbed)
    told = capsys.readouterr().out
    assert "5 trials, 2 of them there" in told
    assert "One seed per trial" in told
    assert all((tmp_path / f"s.{ending}").stat().st_size for ending in ("csv", "md", "tex", "html", "png"))
    assert "best" in (tmp_path / "s.md").read_text()


def test_a_search_that_was_stopped_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    """Killed at random moments: tests/faults/test_search_killed.py."""
    steps = Steps(until=9)
    searched(tmp_path, 5, callback=steps)
    assert len(table(tmp_path)) < 5
    assert searched(tmp_path, 5) == DONE
    assert table(tmp_path) == table(undisturbed)


def test_what_the_records_hold_is_told_first_and_measured_no_more(tmp_path, capsys):
    axes = (Axis("timesteps.m", (0.0, 0.7)), Axis("timesteps.sigma", (0.2, 0.6)))
    steps = Steps()
    options = Options(storage=str(tmp_path), executor="local")
    assert run_sweep(Sweep("grid", tiny(6), axes), options, callbacks=[steps]) == DONE
    assert run_sweep(Sweep("other", tiny(6, ema_decay=0.8), axes[:1]), options) == DONE
    assert steps.count == 24
    assert searched(tmp_path, 1, callback=steps) == DONE
    assert steps.count == 30, "one trial of its own"
    assert "4 points of the space told to the study from the records" in capsys.readouterr().out
    there = table(tmp_path)
    assert len(there) == 5
    grid = results.runs(tmp_path, sweep="grid")
    assert set(grid[VALIDATION_LOSS]) < set(there.values())


def test_several_objectives_give_a_front_and_limits_are_kept(tmp_path, capsys):
    axes = ("sampler.num_function_evaluations=int:2..6", "timesteps.m=0,0.7")
    code = searched(
        tmp_path, 6, *axes, method="nsga2", objectives=("fd", "cost/nfe"), requirements=("cost/nfe <= 5",),
    )  # fmt: skip
    assert code == DONE
    frame = results.runs(tmp_path, sweep="s")
    lines = (tmp_path / "s.md").read_text()
    assert "front" in lines
    rows = [line for line in lines.splitlines() if line.startswith("|") and "beyond a limit" in line]
    assert len(rows) == (frame["cost/nfe"] == 6).sum()
    assert "smallest fd/openmoji and smallest cost/nfe, with cost/nfe <= 5" in capsys.readouterr().out


def test_seeds_are_averaged_and_what_is_undecided_is_marked(tmp_path):
    assert searched(tmp_path, 2, method="random", seeds=2) == DONE
    frame, journal = results.runs(tmp_path, sweep="s"), (tmp_path / "studies" / "s.journal").read_text()
    told = [json.loads(line)["values"] for line in journal.splitlines() if '"values":[' in line]
    names = frame["run_name"].str.partition(" seed=")[0]
    means = frame.groupby(names)["fd/openmoji"].mean()
    assert sorted(value for (value,) in told) == pytest.approx(sorted(means))
    assert "undecided" in (tmp_path / "s.md").read_text(), "two seeds of six steps decide nothing"


def test_a_trial_that_diverges_counts_and_is_told(tmp_path):
    assert searched(tmp_path, 2, "optimizer.learning_rate=1e20,1e21") == SOME_FAILED
    states = [
        json.loads(line)["state"] for line in (tmp_path / "studies/s.journal").read_text().splitlines()
        if '"state":3' in line
    ]  # fmt: skip
    assert len(states) == 2
    steps = Steps()
    assert searched(tmp_path, 2, "optimizer.learning_rate=1e20,1e21", callback=steps) == SOME_FAILED
    assert steps.count == 0


def test_points_that_are_no_experiments_are_told_and_count(tmp_path, capsys):
    """Batches of the tiny experiment divide its 96 images."""
    axis = "training.batch=int:16..48"
    assert searched(tmp_path, 4, axis, method="random") == DONE
    trained = len(table(tmp_path))
    told = capsys.readouterr().out
    assert told.count("is no experiment here, and counts as failed") == 4 - trained > 0
    assert searched(tmp_path, 4, axis, method="random") == DONE
    assert "4 trials, 4 of them there" in capsys.readouterr().out


def test_points_of_one_distribution_are_trained_once_and_count_once(tmp_path, capsys):
    """Under the reference truncation a sigma of 0.5 or more changes nothing."""
    steps = Steps()
    assert searched(tmp_path, 2, "timesteps.sigma=0.1..3", callback=steps) == DONE
    assert steps.count == 12
    told = capsys.readouterr().out
    assert len(table(tmp_path)) == 2
    again = Steps()
    assert searched(tmp_path / "flat", 2, "timesteps.sigma=0.6..1", callback=again) == DONE
    assert again.count == 6, "the space has one distribution"
    assert "the same distribution as trial 0; not trained, and not counted" in capsys.readouterr().out
    assert "2 trials, 2 of them there" not in told


def test_a_grid_search_takes_the_points_of_the_grid(tmp_path, capsys):
    """Numbers with many digits are found again, by the same search and by a plain grid of the same name."""
    axis = "timesteps.m=0..1"
    steps = Steps()
    assert searched(tmp_path, None, axis, method="grid", grid=4, callback=steps) == DONE
    assert steps.count == 24
    assert searched(tmp_path, None, axis, method="grid", grid=4, callback=steps) == DONE
    assert steps.count == 24
    assert (tmp_path / "s.md").read_text().count("| 0.333333333333 |") == 1
    capsys.readouterr()
    plain = Sweep("s", tiny(6), (parse_axis(axis).with_points(4),))
    assert run_sweep(plain, Options(storage=str(tmp_path), executor="local"), callbacks=[steps]) == DONE
    assert steps.count == 24
    assert searched(tmp_path, 5, axis, callback=steps) == DONE
    assert run_sweep(plain, Options(storage=str(tmp_path), executor="local"), callbacks=[steps]) == DONE
    assert steps.count == 30
    rows = [line for line in (tmp_path / "s.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5, "the trial of the search is a row of the grid's table, too"


def test_a_study_that_is_away_for_a_while_ends_no_training(undisturbed, tmp_path, capsys, monkeypatch):
    asked = Study.ask
    failures = iter([True, True])

    def ask(self: Study):
        if next(failures, False):
            raise ConfigError("the study cannot be read")
        return asked(self)

    monkeypatch.setattr(Study, "ask", ask)
    with pytest.raises(ConfigError, match="cannot be read"):
        searched(tmp_path, 2)  # at the start nothing runs
    steps = Steps()
    options = {"executor": "processes", "cpus_per_trial": 1}
    failures = iter([False, True, True])
    assert searched(tmp_path, 3, options=options) == DONE
    assert len(table(tmp_path)) == 3
    assert capsys.readouterr().out.count("warning: the study cannot be read") == 1
    assert steps.count == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ("fid",)}, r"--objective fid: no cell of this sweep records it"),
        ({"objectives": ("fd", "fd/openmoji")}, "is there twice"),
        ({"objectives": ("difficulty/pearson_t0.31",)}, "no cell of this sweep records it"),
        ({"requirements": ("cost/nfe = 3",)}, "is METRIC <= NUMBER"),
        ({"requirements": ("cost/nfe <= inf",)}, "is METRIC <= NUMBER"),
        ({"options": {"evaluation_workers": 2}}, "evaluation_workers"),
        ({"trials": 0}, "trials"),
        ({"method": "anneal"}, "search"),
        ({"grid": 3}, "grid"),
        ({"axes": ("timesteps.sigma=-1..1",)}, "sigma"),
        ({"axes": ("evaluation.reference=a.npz,b.npz",)}, "evaluation.reference: is read once for all cells"),
        ({"axes": ("data.streams=int:2..4",)}, "data.streams: is read once for all cells"),
        ({"axes": ("timesteps.m=0..1",), "method": "grid"}, "give its number of points"),
    ],
)
def test_wrong_searches_are_refused_before_anything_starts(settings, message, tmp_path):
    steps = Steps()
    with pytest.raises((ConfigError, FieldError), match=message):
        searched(tmp_path, settings.pop("trials", 3), *settings.pop("axes", ()), callback=steps, **settings)
    assert steps.count == 0
    assert not list(read_sweeps(Storage.open(tmp_path), print))


def test_a_dry_run_begins_no_study(tmp_path, capsys):
    sweep = Sweep("s", tiny(6), tuple(map(parse_axis, AXES)), points=())
    options = Options(storage=str(tmp_path), executor="local")
    assert run_sweep(sweep, options, search=SearchSettings("tpe", 7), dry_run=True) == DONE
    assert "for 7 trials" in capsys.readouterr().out
    assert not (tmp_path / "studies").exists()


def test_two_drivers_of_a_search_share_its_trials(undisturbed, tmp_path):
    """While one driver trains its third trial, another one asks for the fourth, and is killed right after."""
    sweep = Sweep("s", tiny(6), tuple(map(parse_axis, AXES)), points=())
    options = Options(storage=str(tmp_path), executor="local")

    class Asks(Steps):
        def on_record(self, state: TrainState, record: Record) -> None:
            self.count += 1
            if self.count == 15:
                other = Search(plan(sweep, options, make_console()), SearchSettings("tpe", 5))
                assert other.study.ask() is not None

    assert searched(tmp_path, 5, callback=Asks()) == DONE
    there = table(tmp_path)
    assert len(there) == 5
    first = sorted(there)[:3]
    assert [there[label] for label in first] == [table(undisturbed)[label] for label in first]
