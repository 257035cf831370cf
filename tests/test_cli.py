"""The commands as a user types them, in real processes. Oracle: exit codes and messages."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pforce import cli, results
from pforce.base.console import exit_on_errors, make_console, under_way
from pforce.data import Manifest
from pforce.metrics.distances import IMAGE_METRICS
from pforce.orchestration.display import Display
from pforce.tracking import default_uri
from pforce_experiments.sweeps import ltg_grid, sampler_thresholds
from tests.support.starts import pforce

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "--model.depth", "1", "--model.width", "16", "--model.heads", "2", "--training.images", "128",
    "--evaluation.images", "4", "--evaluation.held-out-images", "8", "--sampler.num-function-evaluations", "2",
]  # fmt: skip


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip


REFUSED = [
    (("train", "openmoji32_mico"), "unknown experiment; did you mean openmoji32_micro"),
    (("train", "openmoji32_micro", "--timesteps.sigma", "-1"), "error: timesteps.sigma = -1.0: must be > 0"),
    (("train", "openmoji32_micro", "--timesteps.s", "0"), "error: timesteps.s = 0.0: must be > 0"),
    (("train", "openmoji32_micro", "--training.images", "0"), "error: training.images = 0: must be a positive mult"),
    (("train", "openmoji32_micro", "--sampler.guidance.scale", "-1"), "error: sampler.guidance.scale = -1.0: must be"),
    (("train", "openmoji32_micro", "--workers", "0"), "error: workers = 0: must be ≥ 1"),
    (("train", "openmoji32_micro", "--nfe", "few"), "num_function_evaluations = 'few': must be an integer"),
    (
        ("train", "openmoji32_micro", "--sampler", "dual_lop"),
        "sampler = 'dual_lop': must be one of euler, dual_loop, look_ahead, random_order; did you mean dual_loop?",
    ),
    (("train", "openmoji32_micro", "--timesteps=ltgg"), "did you mean ltg?"),
    (("train", "openmoji32_micro", "--timesteps"), "--timesteps: its value is missing"),
    (("evaluate", "x", "--evaluation.images", "few"), "error: evaluation.images = 'few': must be an integer"),
    (("evaluate", "x", "--evaluation.seed", "1", "--seed=1"), "--seed"),
    (
        ("evaluate", "x", "--sampler.guidance.interval", "0", "x"),
        "guidance.interval = '0 x': must be 2 values, each a numb",
    ),
    (
        ("evaluate", "x", "--evaluation.metrics", "kernel", "frechett"),
        f"error: evaluation.metrics = 'frechett': must be one of {', '.join(IMAGE_METRICS)}; did you mean frechet?",
    ),
    (
        ("sample", "x", "--sampler.spacing=liner"),
        "error: sampler.spacing = 'liner': must be one of linear, cosine, shifted; did you mean linear?",
    ),
    (
        ("sample", "x", "--save", "picture"),
        "save = 'picture': must be one of grid, images, npz (a list takes all words",
    ),
    (("runs", "--watch", "often"), "error: watch = 'often': must be a number"),
    (("train", "openmoji32_micro", "--timesteps.sigm", "1"), "--timesteps.sigma"),
    (("train", "openmoji32_micro", "--model.depth", "two"), "error: model.depth = 'two': must be an integer"),
    (("train", "openmoji32_micro", "--model.heads", "5"), "must be a divisor of the width 128"),
    (("train", "openmoji32_micro", "--data.resolution", "30"), "must be a multiple of model.patch = 4"),
    (("trian",), "error: pforce trian: unknown command. Did you mean `pforce train`?"),
    (("records",), "error: pforce records: its subcommand is missing pforce records SUBCOMMAND [--help] records list"),
    (("records", "lits"), "error: pforce records lits: unknown command. Did you mean `pforce records list`?"),
    (("records", "export", "--out", "x.txt"), "out = 'x.txt': must be a name that ends in .jsonl"),
    (("data", "build", "imagenet"), "error: name = 'imagenet': must be one of openmoji, fashion-mnist"),
    (("train", "openmoji32_micro", "--storage", "/proc/nothing"), "cannot be written"),
    (("train", "imagenet256_pft_b"), "imagenet256-latents"),
    (("train", "openmoji32_micro", "--ray-address", "head:6379"), "without Ray"),
    (("data", "build", "openmoji", "--destination", "/proc/nothing"), "cannot write the dataset to /proc/nothing"),
]
REFUSED_SWEEPS = [
    (("--axis", "timesteps.sigm=1"), "did you mean timesteps.sigma"),
    (("--sigma", "0"), "timesteps.sigma = 0.0: must be > 0"),
    (("openmoji32_macro",), "did you mean openmoji32_micro"),
    (("--set", "seed=4"), "set with --seeds"),
    (
        ("--m", "0", "0.7", "openmoji32_s"),
        "error: m = 'openmoji32_s': must be a number (a list takes all words up to t",
    ),
    (("--set", "sampler=dual_lop"), "did you mean dual_loop?"),
    (("--name", "ltg/v2"), "name = 'ltg/v2'"),
    (("--set", "timesteps=ltg,srm"), "must be one of"),
    (("--set", "data.resolution=30"), "must be a multiple of model.patch = 4"),
    (("--storage", "/proc/nothing"), "cannot be written"),
]


def words(text: str) -> str:
    """Text without boxes and line breaks."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_errors_are_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["pforce", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in words(printed.out + printed.err)
    assert not (tmp_path / "runs" / "mlflow.db").exists()


@pytest.mark.parametrize(("arguments", "message"), REFUSED_SWEEPS)
def test_the_sweep_script_refuses_the_same_way(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["ltg_grid.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        exit_on_errors(ltg_grid.main)
    assert stopped.value.code == 2
    assert message in words(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_advice_names_an_option_where_there_is_one():
    assert ltg_grid.sweep(ltg_grid.Arguments()).longer == "--preset full"
    assert ltg_grid.sweep(ltg_grid.Arguments(preset="full")).longer == ""


REFUSED_SEARCHES = [
    (("--samplers", "euler", "dual_lop"), "random_order; did you mean dual_loop?"),
    (
        ("--samplers", "euler", "runs/trainings/x"),
        "random_order (a list takes all words up to the next",
    ),
    (("--sampler.quantile", "0.9", "0.1"), "error: sampler.quantile = (0.9, 0.1): must be (low, high) with low ≤ high"),
    (("--guidance", "-1"), "error: guidance = -1.0: must be ≥ 0"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED_SEARCHES)
def test_a_search_of_samplers_refuses_the_same_way(arguments, message, monkeypatch, capsys):
    """A list option that stands before the model takes it for one of its values."""
    monkeypatch.setattr(sys, "argv", ["sampler_thresholds.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        exit_on_errors(sampler_thresholds.main)
    assert message in words(capsys.readouterr().err)


@pytest.mark.process
def test_a_refusal_in_a_process_of_its_own(tmp_path):
    done = run(str(ROOT / "sweeps" / "ltg_grid.py"), "--axis", "timesteps.sigm=1", cwd=tmp_path)
    assert done.returncode == 2
    assert words(done.stderr).startswith("error: timesteps.sigm: unknown field")


@pytest.mark.parametrize("group", sorted({words[0] for words in cli.COMMANDS if len(words) > 1}))
def test_the_help_of_a_group_lists_its_commands(group, capsys):
    assert cli._run([group, "--help"]) == 0
    out = capsys.readouterr().out
    listed = [words for words in cli.COMMANDS if f" {' '.join(words)} " in out]
    assert listed == [words for words in cli.COMMANDS if words[0] == group]


@pytest.mark.process
def test_commands_are_listed_at_once_and_as_they_describe_themselves():
    """The list imports neither torch nor MLflow; each line is what the command's own help begins with."""
    code = (
        "import sys; from pforce.cli import _run; c = _run(['--help']); assert not {'torch', 'mlflow', 'ray', 'pandas'}"
        " & set(sys.modules); sys.exit(c)"
    )
    listed = run("-c", code)
    assert listed.returncode == 0, listed.stderr
    for words_of, command in cli.COMMANDS.items():
        module, name = command.function.split(".")
        function = getattr(importlib.import_module(f"pforce.commands.{module}"), name)
        assert words(function.__doc__.strip().split("\n")[0]) == command.summary
        assert " ".join(words_of) in listed.stdout


@pytest.mark.process
def test_help_explains():
    top = pforce()
    assert top.returncode == 0
    for word in ("data build", "train", "experiments"):
        assert word in top.stdout
    # What plans or shows waits for none of these: they take longer to import than all else but torch.
    code = (
        "import sys\nfrom pforce.cli import _run\ntry: _run(sys.argv[1:])\n"
        "finally: assert not {'mlflow', 'ray', 'triton'} & set(sys.modules)"
    )
    helped = run("-c", code, "train", "openmoji32_micro", "--help")
    assert helped.returncode == 0, helped.stderr
    fields = helped.stdout
    for word in (
        "--nfe INT",
        "--evaluation.no-extrapolate",
        "--timesteps.sigma FLOAT",
        "--model.attention {sdpa,flash}",
        "Global batch",
        "--storage STR",
    ):
        assert word in fields
    assert "--preset {quick,full}" in run(str(ROOT / "sweeps" / "ltg_grid.py"), "--help").stdout
    without_a_name = pforce("train").stdout
    assert "EXPERIMENT" in without_a_name
    assert "openmoji32_sit_micro" in without_a_name


@pytest.mark.parametrize("no_color", ["", "1"])
def test_help_has_colours_on_a_terminal_unless_they_are_not_wanted(no_color, monkeypatch, capsys):
    """Oracle: https://no-color.org."""
    for name, value in (("TERM", "xterm"), ("NO_COLOR", no_color)):
        monkeypatch.setenv(name, value)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "argv", ["pforce", "runs", "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert ("\x1b[" in capsys.readouterr().out) == (not no_color)


@pytest.mark.parametrize("ci", ["", "1"])
def test_nothing_moves_on_a_terminal_of_ci(ci, monkeypatch, capsys):
    """Oracle: a bar moves the cursor, a line does not."""
    for name, value in (("TERM", "xterm"), ("CI", ci)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console = make_console()
    assert console.is_terminal
    with under_way(console, "looking …") as say, Display(console, "sweep", 1) as display:
        say("looking again …")
        display.end("a", "done")
    out = capsys.readouterr().out
    assert "a: done" in out
    assert ("\x1b[" in out) == (not ci)


@pytest.mark.process
def test_data_build(tmp_path):
    folder = tmp_path / "openmoji"
    first = pforce("data", "build", "openmoji", "--resolution", "32", "--destination", str(folder))
    assert first.returncode == 0, first.stderr
    manifest = Manifest.load(folder)
    assert len(manifest.train.shards) >= 16
    assert f"{manifest.train.samples:,} training" in first.stdout


@pytest.mark.process
def test_train_without_ray_and_another_sampler(openmoji_folder, tmp_path):
    """A run in MLflow with its numbers; a second call trains nothing; ray is never imported."""
    code = (
        "import sys; from pforce.cli import _run; c = _run(sys.argv[1:]); assert 'ray' not in sys.modules; sys.exit(c)"
    )
    arguments = ("train", "openmoji32_micro", "--timesteps", "srm", "--timesteps.sharpness", "2", *TINY)
    first = run("-c", code, *arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    (row,) = results.runs(default_uri(tmp_path / "runs")).to_dict("records")
    assert row["timesteps"] == "srm"
    assert row["timesteps.sharpness"] == 2
    assert row["status"] == "FINISHED"
    again = pforce(*arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert "1 finished before" in again.stdout


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"]])
def test_a_reader_who_has_enough_gets_no_traceback(arguments):
    """`pforce … | true`: the reader is gone before anything is written. Oracle: nothing on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from pforce.cli import main; main()", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    os.close(writer)
    assert done.returncode in (1, 141)
    assert done.stderr == ""


def test_a_narrow_terminal_shows_names_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "argv", ["pforce", "experiments"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "imagenet256_sit_b" in capsys.readouterr().out
