"""The drill table: event × executor → what must hold afterwards. Real processes, real deaths at random steps.

Oracle: the same training undisturbed in this process; bit for bit for one worker, 1e-3 for two.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, make_console
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, trial_folder
from pforce.orchestration.sweep import Sweep
from pforce.storage import Storage
from pforce.trial.attempts import ATTEMPTS, logs_of
from tests.faults.drills import moments, one_run
from tests.orchestration.conftest import make_plan
from tests.support.trap import set_trap, trapped

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]
STEPS, EVERY = 60, 5
EXECUTORS = ("local", "processes", "tune", "groups")


def plan_for(executor: str, storage: Path, traps: Path, steps: int = STEPS, **options) -> Plan:
    experiment = trapped(steps, traps, log_every=EVERY, checkpoint_every=EVERY)
    workers = 2 if executor == "groups" else 1
    return make_plan(Sweep("drill", experiment, ()), storage, cpus_per_trial=1, workers=workers, **options)


def run(plan: Plan, executor: str) -> tuple[int, str]:
    console = make_console(file=io.StringIO(), width=200)
    return execute(plan, console, executor), console.file.getvalue()


@pytest.fixture(scope="module")
def traps(tmp_path_factory) -> Path:
    """One folder for all drills: its name is part of the training's."""
    return tmp_path_factory.mktemp("traps")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, traps) -> dict[str, float]:
    plan = plan_for("local", tmp_path_factory.mktemp("undisturbed"), traps)
    assert run(plan, "local")[0] == DONE
    return results.runs(plan.options.uri).iloc[0].to_dict()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "drill",
    [
        ("local", "memory", 2),  # that it is killed is tests/faults/test_driver.py
        ("processes", "kill", 2),
        ("processes", "memory", 1),
        ("tune", "kill", 2),
        ("tune", "memory", 1),
        ("groups", "kill", 1),  # a new group takes seconds; two losses are in test_nodes.py
    ],
)
def test_a_disturbed_training_ends_as_an_undisturbed_one(tmp_path, traps, undisturbed, drill):
    """At random steps: attempts go on at the last checkpoint, and every point of the curve is there once."""
    executor, event, times = drill
    for number, step in enumerate(moments(f"{executor} {event}", 4, 40, count=times)):
        set_trap(traps, f"{number}", step - 20 * number, event)
    plan = plan_for(executor, tmp_path, traps)
    code, said = run(plan, executor)
    assert code == DONE, said
    assert not list(traps.iterdir()), "all traps were sprung"
    row, tags, steps = one_run(plan)
    reason = {"kill": "worker died", "memory": "out of memory"}[event]
    attempts = times + 1
    assert (tags["pforce.attempts"], tags["pforce.retried"]) == (str(attempts), "; ".join([reason] * times))
    assert f"{reason}; attempt 2 of 3 resumes from its last checkpoint" in said
    assert steps == list(range(EVERY, STEPS + 1, EVERY))
    for name in ("val/loss", "fd/openmoji", "difficulty/pearson_t0.60"):
        close = pytest.approx(undisturbed[name], rel=1e-3 if executor == "groups" else 0, abs=0)
        assert row[name] == close, name
    storage, folder = Storage.open(tmp_path), trial_folder(plan.options, plan.work[0]).relative_to(tmp_path)
    first = [name for name in logs_of(storage, str(folder)) if name.count(".") == 1]
    assert first == [f"{number}.log" for number in range(1, attempts + 1)], "each attempt has a log"
    last = (tmp_path / folder / ATTEMPTS / first[-1]).read_text()
    assert last.rstrip().endswith("done")


@pytest.mark.parametrize("executor", ["processes", "tune"])  # what a group's loss is to the driver is above
def test_a_worker_that_dies_each_time_is_a_failed_trial(ray_cluster, tmp_path, traps, executor):
    """At once, with one further attempt: FAILED with its reason, its log with its run, and no endless start."""
    set_trap(traps, "always", 1, "exit", times=100)
    plan = plan_for(executor, tmp_path, traps, retries=1)
    code, said = run(plan, executor)
    (traps / "always.trap").unlink()
    assert code == SOME_FAILED, said
    row, tags, _ = one_run(plan)
    assert (row["status"], row["reason"]) == ("FAILED", "worker died")
    assert tags["pforce.attempts"] == "2"
    assert plan.failed == {plan.work[0].fingerprint: "worker died"}


@pytest.mark.parametrize("executor", ["local", "tune"])
def test_what_an_attempt_said_stays(ray_cluster, tmp_path, traps, executor):
    """Output of Python and below it, a traceback of 10 MB: in the log and, shortened, with the run; nothing floods the
    terminal or the store."""
    set_trap(traps, "a", 2, "print")
    set_trap(traps, "b", 3, "huge", times=2)
    plan = plan_for(executor, tmp_path, traps, retries=0)
    code, said = run(plan, executor)
    for left in traps.iterdir():
        left.unlink()
    assert code == SOME_FAILED
    row, tags, _ = one_run(plan)
    (log,) = trial_folder(plan.options, plan.work[0]).glob(f"{ATTEMPTS}/1.log")
    text = log.read_text()
    assert row["reason"] == "RuntimeError"
    assert "Traceback (most recent call last)" in text
    assert "characters left out" in text
    assert len(text) < 3 << 20
    if executor == "tune":  # in this process output stays on the terminal
        for line in ("said on stdout", "said on stderr", "said below Python"):
            assert line in text
    assert len(said) < 20_000
    assert len(tags["error"]) <= 4_000
    client = plan.tracker.client
    assert "1.log" in {file.path for file in client.list_artifacts(row["run_id"])}
    assert f"pforce logs {plan.work[0].fingerprint[:12]}" in said


def test_a_log_that_cannot_be_written_disturbs_nothing(tmp_path, traps, undisturbed):
    """Where its folder should be lies a file: said once, and the numbers are the same."""
    plan = plan_for("processes", tmp_path, traps)
    folder = trial_folder(plan.options, plan.work[0])
    folder.mkdir(parents=True)
    (folder / ATTEMPTS).write_text("in the way")
    code, said = run(plan, "processes")
    assert code == DONE
    assert said.count("the attempt's output is not kept") == 1
    assert one_run(plan)[0]["val/loss"] == undisturbed["val/loss"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_time_limit_leaves_a_checkpoint_at_the_step_that_was_reached(
    ray_cluster, tmp_path, traps, executor, monkeypatch
):  # fmt: skip
    """Between two checkpoints: KILLED with its reason, a checkpoint where it stopped, and all workers at one step. The
    same command goes on and gives every point once."""
    from pforce.orchestration import drive
    from pforce.trial.task import Answer, CurvePoint, Event

    listen = drive._Drive.listen

    def then_late(loop: drive._Drive, event: Event) -> Answer:
        if isinstance(event, CurvePoint):
            loop.deadline = 0.0
            loop.tick()
        return listen(loop, event)

    monkeypatch.setattr(drive._Drive, "listen", then_late)
    experiment = trapped(4_000, traps, log_every=3, checkpoint_every=3_999)
    workers = 2 if executor == "groups" else 1
    options = Options(storage=str(tmp_path), cpus_per_trial=1, workers=workers, max_hours=1)
    plan = make_plan(Sweep("drill", experiment, ()), tmp_path, cpus_per_trial=1, workers=workers, max_hours=1)
    code, said = run(plan, executor)
    assert code == 4, said
    assert "Stopped by the wall-clock limit" in said
    (row,) = results.runs(options.uri).to_dict("records")
    assert (row["status"], row["reason"]) == ("KILLED", "time limit")
    (checkpoint,) = trial_folder(plan.options, plan.work[0]).glob("checkpoints/step_*")
    assert 3 <= int(checkpoint.name.removeprefix("step_")) < 3_999
