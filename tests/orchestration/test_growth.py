"""Sweeps that grow: after their driver, and while it runs. Oracles: counted trainings, the cells' names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.orchestration import growth
from pforce.orchestration.axes import Axis
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import sweep_entry
from pforce.orchestration.recorded import recorded
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import NamedRow, Sweep, Work
from pforce.orchestration.sweep_report import table_rows
from pforce.records.sweeps import read_sweeps
from pforce.storage import Storage
from pforce.training import Callback, Record, TrainState
from tests.orchestration.conftest import make_plan, small_sweep
from tests.training.conftest import tiny

pytestmark = pytest.mark.process
M = Axis("timesteps.m", (0.0, 0.5))
CONSOLE = make_console(width=200)


class Order(Callback):
    """Notes which cells are trained, and calls a function in the first."""

    def __init__(self, call=lambda: None) -> None:
        self.trained: list[float] = []
        self.call = call

    def on_record(self, state: TrainState, record: Record) -> None:
        m = state.spec.timesteps.m  # type: ignore[attr-defined]
        if not self.trained:
            self.trained.append(m)
            self.call()
        elif self.trained[-1] != m:
            self.trained.append(m)


def run(folder: Path, axis: Axis = M, callback: Callback | None = None, **asked: object) -> int:
    seeds = asked.pop("seeds", (0,))
    sweep = small_sweep(axis, seeds=seeds)  # type: ignore[arg-type]
    options = Options(storage=str(folder), executor="local")
    return run_sweep(sweep, options, callbacks=[callback] if callback else [], **asked)  # type: ignore[arg-type]


def trained_values(folder: Path) -> list[tuple[float, int]]:
    frame = results.runs(folder, sweep="small")
    return sorted(zip(frame["timesteps.m"].astype(float), frame["seed"].astype(int), strict=True))


def test_more_values_and_seeds_add_rows_and_the_table_has_all(tmp_path, capsys):
    order = Order()
    assert run(tmp_path, callback=order) == DONE
    assert run(tmp_path, Axis("timesteps.m", (0.0, 0.5, 1.0)), order) == DONE
    assert order.trained == [0.0, 0.5, 1.0]
    capsys.readouterr()
    assert run(tmp_path, Axis("timesteps.m", (-1.0,)), order) == DONE
    assert order.trained[3:] == [-1.0]
    table = (tmp_path / "small.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:] == [
        "-1", "0", "0.5", "1",
    ]  # fmt: skip
    assert run(tmp_path, seeds=(0, 1), callback=order) == DONE
    assert trained_values(tmp_path) == [(-1.0, 0), (0.0, 0), (0.0, 1), (0.5, 0), (0.5, 1), (1.0, 0)]
    (entry,) = read_sweeps(Storage.open(tmp_path), print)
    assert len(entry.cells) == 6


def test_a_running_driver_takes_up_what_another_command_adds(tmp_path, capsys):
    def add() -> None:
        assert run(tmp_path, Axis("timesteps.m", (0.5, 1.0)), add=True) == DONE

    order = Order(add)
    assert run(tmp_path, callback=order) == DONE
    assert order.trained == [0.0, 0.5, 1.0]
    told = capsys.readouterr().out
    assert "2 unfinished cells written down" in told
    assert "1 cell added to small by another command" in told
    assert len(trained_values(tmp_path)) == 3
    assert "| 1 |" in (tmp_path / "small.md").read_text().replace("   ", " ").replace("  ", " ")


def test_what_an_earlier_command_has_not_finished_is_told_and_not_run(tmp_path, capsys):
    assert run(tmp_path, Axis("timesteps.m", (9.0, 1.0)), add=True) == DONE  # one was a mistake

    def again() -> None:
        assert run(tmp_path, Axis("timesteps.m", (1.0,)), add=True) == DONE

    order = Order(again)
    assert run(tmp_path, callback=order) == DONE
    assert order.trained == [0.0, 0.5, 1.0], "asked for once more while it ran"
    assert "2 unfinished cells of earlier commands of this name not run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (small_sweep(M, steps=7), "training.images is 96 there and 112 here"),
        (small_sweep(M, Axis("timesteps.sigma", (0.1,))), "it varies 'timesteps.m', and this command"),
        (replace(small_sweep(M), axes=(), rows=(NamedRow("a", {"timesteps.s": 1.0}),)), "it varies"),
        (Sweep("small", replace(tiny(6), name="other"), (M,)), "name is 'tiny' there and 'other' here"),
    ],
)
def test_other_settings_under_the_same_name_are_refused(other, message, tmp_path):
    growth.keep_sweep(make_plan(small_sweep(M), tmp_path))
    with pytest.raises(ConfigError, match=rf"name = small: .*with other settings: {message}.*Give another --name"):
        make_plan(other, tmp_path)
    assert len(make_plan(replace(other, name="another"), tmp_path).missing) > 0


def test_rows_of_priority_come_first(tmp_path):
    axis = Axis("timesteps.m", (0.0, 0.5, 1.0))
    order = Order()
    assert run(tmp_path, axis, order, priority=("m=1", "2"), seeds=(0, 1)) == DONE
    assert order.trained == [0.5, 1.0, 0.5, 1.0, 0.0], "seeds outermost within the rows that come first"
    with pytest.raises(ConfigError, match=r"--priority m=7: names no row; the rows are 1: m=0; 2: m=0\.5; 3: m=1"):
        run(tmp_path, axis, priority=("m=7",))


def test_a_strangers_file_of_a_sweep_changes_no_other_field(tmp_path):
    """Only the fields that vary are read of a recorded cell; one that then has another name is left out."""
    plan = make_plan(small_sweep(M), tmp_path)
    sweep, cell = plan.sweep, sweep_entry(plan).cells[1]

    def taken(**changes: object) -> list[Work]:
        entry = replace(sweep_entry(plan), cells=[replace(cell, **changes)])  # type: ignore[arg-type]
        return recorded(sweep, entry, plan.inputs, set())

    (good,) = taken(params={**cell.params, "data.path": "/etc", "evaluation.detector": "mine.py:detector"})
    assert (good.label, good.experiment) == (plan.work[1].label, plan.work[1].experiment)
    assert taken(params={**cell.params, "timesteps.m": 0.25}) == []
    assert taken(params={**cell.params, "timesteps.m": ["x"]}) == []
    assert taken(params={"timesteps": 3}) == []
    assert taken(values=[["n", "0.5"]]) == []
    assert taken(cell="0" * 32) == []


@pytest.mark.parametrize(
    "change",
    [
        {"axes": "timesteps.m"}, {"axes": [1]}, {"settings": []}, {"settings": 3},
        {"cells": [{"values": [["m"]]}]}, {"cells": [{"values": "m"}]}, {"cells": [{"values": [["m", 1]]}]},
    ],
)  # fmt: skip
def test_a_wrong_file_of_a_sweep_is_written_again(change, tmp_path):
    plan = make_plan(small_sweep(M), tmp_path)
    growth.keep_sweep(plan)
    (path,) = (tmp_path / "sweeps" / "small").glob("*.json")
    data = json.loads(path.read_text())
    for name, value in change.items():
        data[name] = [{**data["cells"][0], **value[0]}] if name == "cells" else value
    from pforce.records.sweeps import _checksum

    path.write_text(json.dumps({**data, "checksum": _checksum(data)}))
    said: list[str] = []
    assert list(read_sweeps(Storage.open(tmp_path), said.append)) == []
    assert "is damaged" in said[0]
    growth.keep_sweep(make_plan(small_sweep(M), tmp_path))
    assert len(next(iter(read_sweeps(Storage.open(tmp_path), said.append))).cells) == 2


def test_values_of_one_distribution_stay_one_row_with_fewer_seeds(tmp_path):
    axis = Axis("timesteps.sigma", (0.5, 0.6))

    def planned(*seeds: int):
        return make_plan(small_sweep(axis, seeds=seeds), tmp_path)

    plan = planned(0, 1)
    assert len(plan.work) == 2
    assert execute(plan, CONSOLE, "local") == DONE
    growth.keep_sweep(plan)
    (row,) = table_rows(planned(0))
    assert (row.labels, len(row.fingerprints)) == ({"sigma": "0.5, 0.6"}, 2)


def test_rows_of_cells_that_others_added_have_their_labels(tmp_path):
    assert run(tmp_path, Axis("timesteps.m", (0.0, 1.5))) == DONE
    plan = make_plan(small_sweep(Axis("timesteps.m", (0.0,))), tmp_path)
    assert [row.labels for row in table_rows(plan)] == [{"m": "0"}, {"m": "1.5"}]
