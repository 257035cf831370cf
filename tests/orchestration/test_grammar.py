"""Axes, zips, conditions and files of rows as users write them. Oracle: the cells, listed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE
from pforce.base.errors import ConfigError, FieldError, InputError
from pforce.commands.sweep import sweep
from pforce.commands.sweep_arguments import SweepArguments, parse_sweep
from pforce.orchestration.axes import Axis, Range, Zip
from pforce.orchestration.grammar import parse_axis, parse_zip, read_rows
from pforce.orchestration.sweep import Sweep
from pforce_experiments.openmoji32 import openmoji32_micro


def labels(*words: str) -> list[str]:
    return [cell.label for cell in asked(*words).cells()]


def asked(*words: str) -> Sweep:
    return parse_sweep(SweepArguments, "pforce sweep", ["openmoji32_micro", *words]).sweep()


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("timesteps.m=0,0.7", Axis("timesteps.m", (0, 0.7))),
        ("training.compile=true,False", Axis("training.compile", (True, False))),
        ("timesteps=srm,ltg", Axis("timesteps", ("srm", "ltg"))),
        ("evaluation.context_timesteps=(0.1,0.2),(0.3,)", Axis("evaluation.context_timesteps", ((0.1, 0.2), (0.3,)))),
        ("flow.difficulty_weight=log:1e-4..1", Axis("flow.difficulty_weight", (), range=Range(1e-4, 1, log=True))),
        ("training.images=64..640", Axis("training.images", (), range=Range(64, 640))),
        ("timesteps.sigma=int:0..1", Axis("timesteps.sigma", (), range=Range(0, 1, integer=True))),
        ("timesteps.sigma=0..1.5", Axis("timesteps.sigma", (), range=Range(0, 1.5))),
        ("sampler.quantile=0.3 when sampler=euler", Axis("sampler.quantile", (0.3,), when=("sampler", "euler"))),
    ],
)  # fmt: skip
def test_an_axis(text, axis):
    assert parse_axis(text) == axis


def test_whole_values_have_their_settings_and_show_them():
    values = parse_axis("timesteps=ltg:0.7,1,0.2,srm:4,parallel_uniform,ltg:sigma=0.1").values
    assert list(map(str, values)) == ["ltg:m=0.7,s=1,sigma=0.2", "srm:sharpness=4", "parallel_uniform", "ltg:sigma=0.1"]
    cells = asked("--axis", "timesteps=ltg:0.7,1,0.2,srm:4,parallel_uniform").cells()
    found = [cell.experiment.timesteps for cell in cells]
    assert [type(each).__name__ for each in found] == ["LTG", "SRM", "ParallelUniform"]
    assert (found[0].m, found[0].sigma, found[1].sharpness) == (0.7, 0.2, 4)
    base = openmoji32_micro().sampler
    (cell,) = asked("--axis", "sampler=dual_loop:quantile=0.3").cells()
    assert (cell.experiment.sampler.name, cell.experiment.sampler.quantile) == ("dual_loop", 0.3)
    assert cell.experiment.sampler.num_function_evaluations == base.num_function_evaluations, "NFE stays"


def test_fields_that_change_together():
    assert parse_zip("timesteps.m,timesteps.s=0:1,0.7:0.5") == Zip(("timesteps.m", "timesteps.s"), ((0, 1), (0.7, 0.5)))
    assert labels("--zip", "timesteps.m,timesteps.s=0:1,0.7:0.5", "--axis", "timesteps.sigma=0.1,0.2") == [
        "sigma=0.1 m=0 s=1 seed=0", "sigma=0.1 m=0.7 s=0.5 seed=0",
        "sigma=0.2 m=0 s=1 seed=0", "sigma=0.2 m=0.7 s=0.5 seed=0",
    ]  # fmt: skip


def test_an_axis_varies_only_where_its_condition_holds():
    words = ["--axis", "sampler=euler,dual_loop", "--axis", "sampler.quantile=0.3,0.5", "--when", "sampler=dual_loop"]
    assert labels(*words) == [
        "sampler=euler quantile=– seed=0", "sampler=dual_loop quantile=0.3 seed=0",
        "sampler=dual_loop quantile=0.5 seed=0",
    ]  # fmt: skip
    assert labels("--axis", "sampler=euler,look_ahead", "--axis=sampler.pooling=mean,max", "--when=sampler=look_ahead")[
        1:
    ] == ["sampler=look_ahead pooling=mean seed=0", "sampler=look_ahead pooling=max seed=0"]


def test_ranges_become_points():
    assert Range(0, 1).points(5) == (0, 0.25, 0.5, 0.75, 1)
    assert Range(0.001, 1, log=True).points(4) == (0.001, 0.01, 0.1, 1)
    assert Range(4, 8, integer=True).points(9) == (4, 5, 6, 7, 8), "each once"
    assert Range(0, 0.3).points(4) == (0, 0.1, 0.2, 0.3), "as people would write them"
    assert labels("--axis", "flow.difficulty_weight=log:0.01..1", "--grid", "3", "--seeds", "2") == [
        f"difficulty_weight={value} seed={seed}" for seed in (0, 1) for value in ("0.01", "0.1", "1")
    ]


def test_a_range_has_whole_numbers_where_its_field_takes_no_others():
    assert [cell.experiment.timesteps.m for cell in asked("--axis", "timesteps.m=0..1", "--grid", "3").cells()] == [
        0,
        0.5,
        1,
    ]
    nfe = asked("--axis", "sampler.num_function_evaluations=4..24", "--grid", "4").cells()
    assert [cell.experiment.sampler.num_function_evaluations for cell in nfe] == [4, 11, 17, 24]
    words = ["--axis", "sampler=euler,dual_loop", "--axis", "sampler.inner_steps=2..5", "--when", "sampler=dual_loop"]
    inner = [cell.values[1][1] for cell in asked(*words, "--grid", "3").cells()]
    assert inner == ["–", 2, 4, 5]


def test_whole_numbers_may_be_written_with_an_exponent():
    assert asked("--axis", "timesteps.m=0,1", "--set", "training.images=1e6").base.training.images == 1_000_000
    with pytest.raises(ConfigError, match=r"training\.images = 1\.5"):
        asked("--axis", "timesteps.m=0,1", "--set", "training.images=1.5")


@pytest.mark.parametrize("ending", ["csv", "yaml", "json"])
def test_rows_of_a_file(tmp_path, ending):
    """Oracle: the same rows in each format, a spreadsheet's byte order mark and quotes included."""
    path = tmp_path / f"rows.{ending}"
    path.write_text({
        "csv": '\ufeff"row",timesteps,"timesteps.sigma",seed_note\r\n"plain, short",ltg:m=0.5,0.1,-\r\n,srm,-,-\r\n',
        "yaml": "- {row: 'plain, short', timesteps: 'ltg:m=0.5', timesteps.sigma: 0.1}\n- {timesteps: srm}\n",
        "json": '[{"row": "plain, short", "timesteps": "ltg:m=0.5", "timesteps.sigma": 0.1}, {"timesteps": "srm"}]',
    }[ending].replace(",seed_note", "").replace(",-\r\n,srm,-,-", "\r\nsecond,srm,-"), encoding="utf-8")  # fmt: skip
    first, second = read_rows(path)
    assert (first.name, second.name) == ("plain, short", "second" if ending == "csv" else "timesteps=srm")
    cells = asked("--rows", str(path), "--axis", "flow.difficulty_weight=0.1,0.2").cells()
    assert len(cells) == 4
    assert (cells[0].experiment.timesteps.m, cells[0].experiment.timesteps.sigma) == (0.5, 0.1)
    assert cells[2].experiment.timesteps.name == "srm"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing varies"),
        (["--when", "sampler=euler"], "follows no --axis"),
        (["--set", "seed=1", "--axis", "timesteps.m=0"], "seed: the seeds of a sweep"),
        (
            ["--axis", "sampler.quantile=0.3", "--when", "sampler=dual_loop"],
            "sampler is no axis before sampler.quantile",
        ),
        (["--axis", "sampler=euler", "--axis", "sampler.quantile=0.3", "--when", "sampler"], "is FIELD=VALUE"),
        (["--axis", "timesteps.m=0", "--when", "a=1", "--when", "b=2"], "has a condition already"),
        (
            ["--zip", "timesteps.m,timesteps.s=0:1,0.7"],
            "0.7 has 1 value, where 2 fields change together; give VALUE:VALUE",
        ),
        (["--zip", "timesteps.m=0,1"], "must be FIELD,FIELD"),
        (["--zip", "timesteps.m,timesteps.s=0:1", "--axis", "timesteps.m=0"], "timesteps.m: is an axis twice"),
        (["--axis", "timesteps.m=0..1"], "is a range; give --search tpe --trials N, or its number"),
        (["--axis", "timesteps.m=1..0", "--grid", "3"], "smaller end comes first, as in 0"),
        (["--axis", "timesteps.s=log:0..1", "--grid", "3"], "ends above 0"),
        (["--axis", "timesteps.m=0,1", "--grid", "3"], "no axis is one"),
        (["--axis", "timesteps.m=0..1", "--grid", "1"], "2 to 1000"),
        (["--axis", "timesteps=ltx:0.7"], "did you mean ltg"),
        (["--axis", "timesteps=ltg:1,2,3,4,5"], "ltg has 4 settings"),
        (["--axis", "timesteps=ltg:m=1,m=2"], "there twice"),
        (["--axis", "timesteps=srm:q=1"], "q is no setting; srm has sharpness"),
        (["--axis", "timesteps=ltg:0.7,-1"], "timesteps.s = -1"),
        (["--axis", "timestep.m=0"], "did you mean timesteps.m"),
        (["--axis", "timesteps.m=0", "--set", "timesteps.s=0..1"], "is one value, no range"),
        (["--axis", "timesteps.m=0", "--seeds", "0"], "seeds = 0"),
        (["--axis", "timesteps.m=0", "--set", "timesteps.m=1"], "--set timesteps.m: varies"),
        (["--axis", "timesteps=ltg,srm", "--set", "timesteps.sigma=0.2"], "is lost where timesteps varies"),
        (["--axis", "timesteps=ltg,srm", "--set", "timesteps=ltg:0.7"], "--set timesteps: varies"),
        (["--axis", "sampler=euler,dual_loop", "--set", "sampler=dual_loop:0.5"], "--set sampler: varies"),
        (
            ["--axis", "timesteps=ltg:m=0.5,srm", "--axis", "timesteps.m=0,1"],
            "timesteps.m: is an axis, and a setting of",
        ),
        (
            ["--axis", "sampler=euler,dual_loop", "--axis", "sampler.quantile=0.3", "--when", "sampler=dual_lop"],
            "has no such value; did you mean dual_loop",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_its_cure(words, message):
    with pytest.raises(InputError, match=message) as error:
        asked(*words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "timestep.m\n1\n", "row m=1: timestep.m: unknown field.* did you mean timesteps.m"),
        ("a.csv", "timesteps.m,timesteps.s\n1,\n", "row 1: timesteps.s is empty; write its value, or - for"),
        ("a.csv", "timesteps.m,timesteps.s\n1\n", "row 1: has 1 cells, where there are 2 columns"),
        ("a.csv", "timesteps.m;timesteps.s\n1;2\n", "separated by semicolons"),
        ("a.csv", "timesteps.m,timesteps.m\n1,2\n", "each once"),
        ("a.csv", "timesteps.m\n", "has 0 rows"),
        ("a.yaml", "a: [b", "cannot be read"),
        ("a.yaml", "timesteps.m: 1", "is a list of rows"),
        ("a.yaml", "- !!python/object/apply:os.system ['touch marker']", "is a list of rows"),
        ("a.yaml", "- {timesteps.m: 0, timesteps.m: 0.5}", "a field twice"),
        ("a.json", '[{"timesteps.m": 0, "timesteps.m": 0.5}]', "a field twice"),
        ("a.yaml", "- {flow.difficulty_weight: 1:30}", "difficulty_weight = '1:30'"),
        ("a.yaml", "- {timesteps.m: }", "timesteps.m is empty"),
        ("a.yaml", "- {timesteps.m: {a: 1}}", "timesteps.m is no value"),
        ("a.csv", 'timesteps,timesteps.m\n"ltg:0.7",0\n', "timesteps.m: is given twice"),
        ("a.json", "[[]]", "is a list of rows"),
        ("a.csv", 'timesteps\n"ltg,srm"\n', "a row has one value of a field"),
        ("a.csv", 'timesteps\n"ltg:m=0.5"\n', "timesteps.m is an axis of the sweep"),
        ("a.txt", "x", r"is a \.csv, \.yaml or \.json file"),
    ],
)
def test_files_of_rows_that_are_wrong(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    axis = ["--axis", "timesteps.m=0"] if "is an axis" in message else []
    with pytest.raises((ConfigError, FieldError), match=message):
        asked("--rows", name, *axis)
    assert not Path("marker").exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        asked("--rows", "missing.csv")


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes("row,timesteps.m\nä,1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        asked("--rows", str(tmp_path / "a.csv"))


def test_cells_are_those_of_the_scripts():
    """`pforce sweep` with the axes of the LTG grid names the same cells as `sweeps/ltg_grid.py`."""
    from pforce_experiments.sweeps import ltg_grid

    theirs = ltg_grid.sweep(ltg_grid.Arguments(preset="full", seeds=1))
    words = ["--axis", "timesteps.m=0,0.7", "--axis", "timesteps.s=1", "--axis", "timesteps.sigma=0.2,0.6"]
    ours = asked(*words, "--name", "ltg_grid")
    assert [cell.experiment for cell in ours.cells()] == [cell.experiment for cell in theirs.cells()]
    assert [cell.label for cell in ours.cells()] == [cell.label for cell in theirs.cells()]


def test_a_sweep_of_ones_own_runs_and_grows(tmp_path, capsys):
    """An experiment of a file, in this process: conditional cells are run, and with more values only those."""
    mine = tmp_path / "mine.py"
    mine.write_text("from tests.training.conftest import tiny\n\n\ndef small():\n    return tiny(4)\n")
    words = [
        f"{mine}:small", "--axis", "sampler=euler,dual_loop", "--axis", "sampler.quantile=0.3", "--when",
        "sampler=dual_loop", "--storage", str(tmp_path / "runs"), "--executor", "local", "--cpus-per-trial", "1",
        "--set", "sampler.num_function_evaluations=6",
    ]  # fmt: skip
    assert sweep(words) == DONE
    assert "2 cells, 2 distinct, 0 finished before" in capsys.readouterr().out
    words[4] += ",0.5"
    assert sweep(words) == DONE
    assert "3 cells, 3 distinct, 2 finished before" in capsys.readouterr().out
    frame = results.runs(tmp_path / "runs", "tiny")
    assert frame["training"].nunique() == 1, "samplers share a training"
    assert sorted(frame["sampler.name"]) == ["dual_loop", "dual_loop", "euler"]
