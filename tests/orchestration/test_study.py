"""Studies that stay. Oracles: an undisturbed study of the same seed, and Optuna's own reading of the files."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from pforce.base.errors import ConfigError
from pforce.metrics.names import VALIDATION_LOSS, CostName
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.objectives import Objective, Requirement
from pforce.orchestration.space import Space
from pforce.orchestration.study import METHODS, Study, journal_of
from pforce.storage import Storage

AXES = ("timesteps.m=-1..1.5", "flow.difficulty_weight=log:0.001..1", "sampler=euler,dual_loop",
        "sampler.quantile=0.2..0.6 when sampler=dual_loop")  # fmt: skip
LOSS, NFE = Objective(VALIDATION_LOSS), Objective(CostName.NFE)


def study(folder: Path, *axes: str, method: str = "tpe", objectives=(LOSS,), **options) -> Study:
    space = Space(tuple(map(parse_axis, axes or AXES)))
    options = {"trials": 20, **options}
    return Study(Storage.open(folder), "s", options.pop("uri", None), space=space, objectives=objectives, method=method,
                 **options)  # type: ignore[arg-type]  # fmt: skip


def value(params: dict[str, object]) -> float:
    return abs(float(params["timesteps.m"]) - 0.4) + float(params["flow.difficulty_weight"])  # type: ignore[arg-type]


def run(folder: Path, count: int, *, reopen: bool, **options) -> list[dict[str, object]]:
    """Parameters of so many trials, told one after the other.

    Args:
        reopen: open the study anew before each step, as a killed driver's successor does.
    """
    found, several = study(folder, **options), len(options.get("objectives", (LOSS,)))
    for number in range(count):
        found = study(folder, **options) if reopen else found
        asked = found.ask()
        assert asked is not None
        found = study(folder, **options) if reopen else found
        values = [value(asked.params), float(number % 3)][:several]
        found.tell(asked.number, values, [values[0] - 0.5] if "requirements" in options else ())
    return [dict(trial.params) for trial in found.trials]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("random", {}),
        ("tpe", {}),
        ("tpe", {"objectives": (LOSS, NFE)}),
        ("tpe", {"requirements": (Requirement(VALIDATION_LOSS, at_most=True, limit=0.5),)}),
        ("nsga2", {"objectives": (LOSS, NFE)}),
        ("gp", {}),
    ],
)
def test_a_study_that_is_opened_again_before_each_step_suggests_the_same(method, options, tmp_path):
    count = 13 if method != "gp" else 11  # beyond the random beginning, and more than two generations
    once = run(tmp_path / "once", count, reopen=False, method=method, **options)
    again = run(tmp_path / "again", count, reopen=True, method=method, **options)
    assert once == again
    assert len({str(params) for params in once}) == count, "no point is there twice"
    other = run(tmp_path / "other", 3, reopen=False, method=method, seed=1, **options)
    assert other != once[:3]


def test_optuna_opens_the_journal_and_finds_all_trials(tmp_path):
    found = study(tmp_path, requirements=(Requirement(CostName.NFE, at_most=True, limit=24),))
    first, second, third = (found.ask() for _ in range(3))
    assert first is not None
    assert second is not None
    found.tell(first.number, [1.5], [-4.0])
    found.tell(second.number, None)
    found.tell(first.number, [9.0])  # another driver was first
    there = optuna.load_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(str(tmp_path / "studies/s.journal")))
    )
    states = [trial.state for trial in there.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    assert there.best_trial.value == 1.5
    assert there.trials[0].system_attrs["constraints"] == [-4.0]
    assert there.metric_names == [VALIDATION_LOSS]
    assert third is not None
    assert found.values(third) == study(
        tmp_path, requirements=(Requirement(CostName.NFE, at_most=True, limit=24),)
    ).values(third)


def test_a_conditional_parameter_is_there_only_where_it_holds(tmp_path):
    trials = run(tmp_path, 12, reopen=False, method="random")
    assert {("sampler.quantile" in params) == (params["sampler"] == "dual_loop") for params in trials} == {True}
    assert len({params["sampler"] for params in trials}) == 2


def test_a_grid_takes_all_points_in_order_and_ends(tmp_path):
    axes = ("timesteps.m=0..1", "training.ema_decay=0.9,0.99")
    space = Space(tuple(map(parse_axis, axes)))
    found = study(tmp_path, *axes, method="grid", grid=space.grid(3))
    asked = []
    while (trial := found.ask()) is not None:
        asked.append((trial.params["timesteps.m"], trial.params["training.ema_decay"]))
    assert asked == [(m, ema) for m in (0.0, 0.5, 1.0) for ema in ("0.9", "0.99")]


def test_a_small_space_is_exhausted(tmp_path):
    found = study(tmp_path, "training.ema_decay=0.9,0.99", "training.batch=int:8..9")
    assert sum(found.ask() is not None for _ in range(6)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": ("timesteps.m=0..1",)}, "its space are"),
        ({"axes": (AXES[0].replace("-1", "-2"), *AXES[1:])}, "its space are"),
        ({"objectives": (Objective(VALIDATION_LOSS, maximize=True),)}, "its objectives are"),
        ({"objectives": (LOSS, NFE)}, "its objectives are"),
        ({"requirements": (Requirement(CostName.NFE, at_most=True, limit=9),)}, "its requirements are"),
    ],
)
def test_a_study_of_another_search_is_refused(change, message, tmp_path):
    study(tmp_path).ask()
    with pytest.raises(ConfigError, match=f"another search: {message}.*Give another --name"):
        study(tmp_path, *change.pop("axes", ()), **change)
    assert len(study(tmp_path, method="random", seed=7, trials=99).trials) == 1, "another method may go on with it"


def test_a_study_of_somebody_else_is_refused_and_a_half_made_one_is_not(tmp_path):
    storage = JournalStorage(JournalFileBackend(str(_there(tmp_path))))
    made = optuna.create_study(storage=storage, study_name="s")  # where a process was killed right after
    assert study(tmp_path).ask() is not None
    storage = JournalStorage(JournalFileBackend(str(_there(tmp_path / "other"))))
    made = optuna.create_study(storage=storage, study_name="s")
    made.ask()
    tmp_path /= "other"
    with pytest.raises(ConfigError, match=r"none of pforce's.*another --name"):
        study(tmp_path)


def _there(folder: Path) -> Path:
    path = journal_of(Storage.open(folder), "s")
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("end", [b'{"op_code": 5, "work', b"{", b"\x00\x00\x00"])
def test_half_a_last_line_is_cut_off(end, tmp_path):
    before = study(tmp_path)
    before.tell(before.ask().number, [1.0])  # type: ignore[union-attr]
    path = journal_of(Storage.open(tmp_path), "s")
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    again = study(tmp_path)
    assert [trial.value for trial in again.trials] == [1.0]
    assert again.ask() is not None
    assert path.read_bytes().startswith(whole)


def test_trials_that_people_have_added_are_left_alone(tmp_path):
    """A dashboard's user or a script may add trials of other distributions, or put some into a queue."""
    found = study(tmp_path)
    found.study.enqueue_trial({"timesteps.m": 0.5})
    other = optuna.distributions.CategoricalDistribution(["a", "b"])
    found.study.add_trial(
        optuna.trial.create_trial(value=1.0, params={"timesteps.m": "a"}, distributions={"timesteps.m": other})
    )
    found.study.add_trial(optuna.trial.create_trial(value=1.0, params={}, distributions={}))
    asked = []
    for _ in range(12):  # beyond the random beginning
        asked.append(found.ask())
        found.tell(asked[-1].number, [value(asked[-1].params)])
    assert [trial.number for trial in asked] == list(range(3, 15))
    assert len(found.own) == 12


def test_two_processes_that_add_at_once_have_their_own_trials(tmp_path):
    one, two = study(tmp_path), study(tmp_path)
    before = one.study.add_trial

    def slowly(trial: optuna.trial.FrozenTrial) -> None:
        before(trial)
        two.begin({**trial.params, "timesteps.m": 1.25})

    one.study.add_trial = slowly  # type: ignore[method-assign]
    mine = one.begin({"timesteps.m": 0.25, "flow.difficulty_weight": 0.1, "sampler": "euler"})
    assert (mine.number, mine.params["timesteps.m"]) == (0, 0.25)
    two.tell(0, [1.0])
    one.tell(0, [2.0], [1.0])
    one.note(0, "too", "late")
    assert [trial.value for trial in one.trials] == [1.0, None]


@pytest.mark.parametrize("damage", [b"no journal\n", b'{"op_code": 77, "worker_id": "x"}\n', b"[]\n", b"\xff\xfe\n"])
def test_a_damaged_journal_is_one_line_with_a_cure(damage, tmp_path):
    study(tmp_path).ask()
    path = journal_of(Storage.open(tmp_path), "s")
    path.write_bytes(damage + path.read_bytes())
    with pytest.raises(ConfigError, match=r"s\.journal: the study cannot be read.*--name or --study"):
        study(tmp_path).ask()


def test_a_link_or_a_pipe_in_the_place_of_the_journal_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = _there(tmp_path / "a")
    path.symlink_to(victim)
    with pytest.raises(ConfigError, match="is a link"):
        study(tmp_path / "a")
    assert victim.read_text() == "precious"
    os.mkfifo(_there(tmp_path / "b"))
    with pytest.raises((ConfigError, FileExistsError), match=r"s\.journal"):
        study(tmp_path / "b")


def test_a_lock_that_a_dead_process_has_left_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("pforce.orchestration.study.LOCK_SECONDS", 3)
    found = study(tmp_path)
    lock = Path(f"{journal_of(Storage.open(tmp_path), 's')}.lock")
    lock.symlink_to(journal_of(Storage.open(tmp_path), "s"))
    assert found.ask() is not None
    assert not lock.is_symlink()


def test_a_locked_database_is_one_line(tmp_path):
    uri = f"sqlite:///{tmp_path}/study.db?timeout=0.2"
    found = study(tmp_path, uri=uri)
    with closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("begin exclusive")
        with pytest.raises(ConfigError, match=r"the study cannot be read or written.*locked"):
            found.ask()
    assert study(tmp_path, uri=uri).ask() is not None


def test_a_database_holds_a_study_too(tmp_path):
    uri = f"sqlite:///{tmp_path}/study.db"
    first = run(tmp_path, 3, reopen=True, uri=uri)
    assert len(study(tmp_path, uri=uri).trials) == 3
    assert first == run(tmp_path / "other", 3, reopen=True)
    assert not journal_of(Storage.open(tmp_path), "s").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("study.db", "is the address of a database"),
        ("nothing://user:secret@host/name", "cannot be read"),
        ("postgresql://user:secret@127.0.0.1:1/name", "cannot be read"),
    ],
)
def test_a_wrong_address_is_one_line_without_its_password(uri, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as refused:
        study(tmp_path, uri=uri)
    assert "secret" not in str(refused.value)


def test_every_method_is_tried_here():
    assert set(METHODS) == {"grid", "random", "tpe", "nsga2", "gp"}
