"""`pforce runs` and `pforce cost` as a user types them, after a real small sweep. Oracle: the database, the file."""

from __future__ import annotations

import io
import re
import signal
from pathlib import Path

import pandas as pd
import pytest

from pforce import cli
from pforce.base.console import exit_on_errors, make_console
from pforce.base.errors import ConfigError, FieldError
from pforce.commands import cost as cost_command
from pforce.commands import runs as runs_command
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.results import progress, runs
from pforce.results.costs import costs, run_costs
from pforce.tracking import Tracker, default_uri, runs_frame, sweeps_frame
from tests.orchestration.conftest import small_sweep
from tests.support.starts import PFORCE, Start


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps: the second has one of its two cells from the first."""
    folder = tmp_path_factory.mktemp("runs")
    for name, values in (("first", (0.5,)), ("second", (0.5, 0.7))):
        sweep = small_sweep(Axis("timesteps.m", values), steps=4, name=name)
        assert run_sweep(sweep, Options(storage=folder), executor="local") == 0
    return folder


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli._run(list(arguments))
    return code, re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_sweep_writes_down_how_large_it_is_and_whose(storage):
    table = sweeps_frame(Tracker(default_uri(storage), artifacts=storage)).set_index("sweep")
    assert table["cells"].to_dict() == {"first": 1.0, "second": 2.0}
    assert [len(reused) for reused in table.loc[["first", "second"], "reused"]] == [0, 1]
    assert set(table["user"]) != {"unknown"}


def test_runs_and_trials(storage, capsys):
    code, text = out(capsys, "runs", "--storage", str(storage))
    assert code == 0
    assert re.search(r"second │ done │ 2/2 │ ━+ 100 % ", text)
    assert re.search(r"first │ done │ 1/1 │ ━+ 100 % ", text)
    code, text = out(capsys, "runs", "second", "--storage", str(storage))
    assert code == 0
    assert re.search(r"m=0.5.* │ done │ ━+ 100 % .*m=0.7.* │ done │ ━+ 100 % ", text)
    assert "first" not in text
    images = int(runs(default_uri(storage))["training.images"].iloc[0])
    assert f"{images:,}/{images:,}" in text
    assert "m=0.5" in out(capsys, "runs", "--trials", "--storage", str(storage))[1]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_tables_fit_their_columns(storage, width):
    tracker = Tracker(default_uri(storage), artifacts=storage)
    console = make_console(width=width, file=io.StringIO())
    console.print(runs_command.view(progress.read(tracker), width, trials=True))
    console.print(cost_command.cost_table(costs(run_costs(runs_frame(tracker)), "sweep"), "sweep", width))
    text = console.file.getvalue()
    assert "second" in text
    assert max(map(len, text.splitlines())) <= width
    assert width < 100 or "…" not in text


def test_an_unknown_sweep_names_the_nearest(storage, capsys):
    with pytest.raises(SystemExit) as ended:
        exit_on_errors(lambda: cli._run(["runs", "secnd", "--storage", str(storage)]))
    assert ended.value.code == 2
    assert "did you mean second?" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_an_empty_store_is_said_kindly_and_not_made(tmp_path, capsys):
    for command in ("runs", "cost"):
        code, text = out(capsys, command, "--storage", str(tmp_path / "none"))
        assert (code, text.startswith("No runs yet in")) == (0, True)
        empty = default_uri(tmp_path / command)
        Tracker(empty, artifacts=tmp_path)
        code, text = out(capsys, command, "--tracking-uri", empty)
        assert (code, text.startswith("No runs yet in")) == (0, True)
    assert not (tmp_path / "none").exists()


def test_cost_and_its_file(storage, tmp_path, capsys):
    file = tmp_path / "cost.csv"
    code, text = out(capsys, "cost", "--storage", str(storage), "--csv", str(file))
    assert code == 0
    table = pd.read_csv(file).set_index("sweep")
    assert table["trials"].to_dict() == {"first": 1, "second": 1}
    frame = runs(default_uri(storage))
    once = frame.drop_duplicates("fingerprint")["cost/device_hours"]
    assert table["device_hours"].sum() == pytest.approx(once.sum())
    assert table["share"].sum() == pytest.approx(1)
    assert set(table["kind"]) == {"cpu"}
    assert "total │ core │ 2 │" in text
    for by in ("user", "device", "day"):
        assert out(capsys, "cost", "--by", by, "--storage", str(storage))[0] == 0


@pytest.mark.process
@pytest.mark.timeout(400)
def test_watching_shows_it_anew_until_it_is_interrupted(storage):
    with Start([PFORCE, "runs", "--watch", "1", "--storage", str(storage)]) as process:
        assert process.stdout is not None
        titles = 0
        for line in process.stdout:
            titles += line.startswith("Sweeps")
            if titles == 2:
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=30) == 0
    assert titles == 2


def test_help_explains(capsys):
    for command, words in (("runs", ("SWEEP", "--watch", "--trials", "--all")), ("cost", ("--by", "--csv")),
                           ("doctor", ("--ray-address", "--workers", "--json"))):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            cli._run([command, "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        assert all(word in text for word in words)


def test_logs_of_a_cell(storage, capsys):
    """By its label, its fingerprint, its training's; what is none is answered with what there is. Oracle: the file."""
    frame = runs(storage, "first")
    (log,) = (storage / "trainings" / frame["training"][0] / "attempts").glob("*.log")
    first = log.read_text().splitlines()[1]
    for name in ("m=0.5 seed=0", frame["fingerprint"][0][:10], frame["training"][0]):
        code, text = out(capsys, "logs", name, "--storage", str(storage))
        assert code == 0
        assert first in text
        assert text.rstrip().endswith("done")
        assert "16 images seen, loss" in text
    followed = ["logs", "m=0.5 seed=0", "--follow", "--storage", str(storage)]
    assert out(capsys, *followed)[1].rstrip().endswith("done"), "it ends with the attempt"
    for words, message in (
        (["m=0.6 seed=0"], r"m=0.6 seed=0: no cell .* did you mean m=0\.[57] seed=0"),
        (["zzzz"], "cells are m=0.5 seed=0"),
        (["m=0.5 seed=0", "--attempt", "7"], "attempt = 7: must be one of 1"),
    ):
        with pytest.raises((ConfigError, FieldError), match=message):
            out(capsys, "logs", *words, "--storage", str(storage))


@pytest.mark.process
def test_a_log_is_followed_while_it_grows_and_its_text_obeys_nobody(storage, tmp_path):
    """A process follows; attempts come after that; what a terminal would obey is left out."""
    frame = runs(storage, "first")
    folder = tmp_path / "trainings" / frame["training"][0] / "attempts"
    folder.mkdir(parents=True)
    command = [PFORCE, "logs", frame["training"][0], "--follow", "--storage", str(tmp_path)]
    (folder / "1.log").write_text("begun \x1b[31m[bold]red\n")
    process = Start(command)
    assert process.stdout is not None
    said = process.stdout.readline() + process.stdout.readline()
    assert "begun [31m[bold]red" in said
    (folder / "1.log").open("a").write("12:00:00 out of memory: no\n")
    (folder / "2.log").write_text("12:00:01 at work\n12:00:02 done\n")
    said += process.stdout.read()
    assert process.wait(timeout=120) == 0
    assert said.index("out of memory") < said.index("at work") < said.index("done")
