"""The paper's tables at scale smoke: all of them run for real, once for this file, without Ray.

Oracles: counts of cells and trainings by hand, an uninterrupted table, the paper's rows, what a reader must be told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from pforce import results
from pforce.base.console import DONE, USAGE_ERROR, exit_on_errors, make_console
from pforce.base.errors import ConfigError, FieldError
from pforce.cli import _run
from pforce.config import Experiment
from pforce.orchestration.options import Options
from pforce.orchestration.outlook import outlook, parameter_count
from pforce.orchestration.reproduce import inputs_for, read, read_sweep, reproduce
from pforce.orchestration.reproduction import sweep_of
from pforce.records import exchange, legacy
from pforce.reproduction import Statement, Table, TableRow, Value
from pforce.storage import Storage
from pforce.timesteps import LTG
from pforce.tracking import default_uri
from pforce.training.flops import training_flops
from pforce_experiments import paper
from pforce_experiments.paper import SCALES, TABLES
from tests.support.clock import PATIENCE
from tests.support.starts import PFORCE, Start, pforce

pytestmark = [pytest.mark.timeout(900), pytest.mark.process]
ROOT = Path(__file__).resolve().parents[2]
SMOKE = SCALES["smoke"]
NAMES = [table.name for table in TABLES]
TIMES = ["seconds", "device-hours"]


def run(table: Table, storage: Path, **options) -> int:
    where, console = Options(storage=str(storage), executor="local", cpus_per_trial=1), make_console(quiet=True)
    return reproduce(table, SMOKE, where, console, tflops=1.0, gpus=1, **options)


@pytest.fixture(scope="module")
def smoke(openmoji_folder, tmp_path_factory) -> Path:
    """A storage in which all tables were run."""
    storage = tmp_path_factory.mktemp("smoke")
    for table in TABLES:
        assert run(table, storage) == DONE
    return storage


@pytest.fixture(scope="module")
def place(smoke) -> Storage:
    return Storage.open(smoke)


def measured(storage: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(storage / "reproduction" / f"{name}-smoke.csv")


def test_every_table_is_whole(smoke, place):
    for table in TABLES:
        found = read(table, SMOKE, place)
        assert found.measured["n"].tolist() == [2] * len(table.rows(SMOKE))
        assert len(found.findings) == len(table.statements(SMOKE)) <= 6
        assert {each.word for each in found.findings} <= {"reproduced", "not reproduced", "undecided"}
        assert all(each.verdict.difference.n == 2 for each in found.findings), table.name
        stem = smoke / "reproduction" / f"{table.name}-smoke"
        for ending in ("csv", "md", "tex", "json", "png"):
            assert Path(f"{stem}.{ending}").stat().st_size > 0
        record = json.loads(Path(f"{stem}.json").read_text())
        assert len(record["findings"]) == len(found.findings)
        header = table.paper.header if table.paper else None
        if header:
            assert found.measured[header].notna().sum() == sum(row.paper is not None for row in table.rows(SMOKE))


def test_tables_share_cells_and_trainings(smoke, place):
    """Trainings counted from the definitions by hand, cells by their fingerprints."""
    frame = results.runs(default_uri(smoke))
    cells = {cell.experiment for table in TABLES for cell in sweep_of(table, SMOKE).cells()}
    assert frame["fingerprint"].nunique() < len(cells)
    assert not frame.duplicated(["sweep", "fingerprint"]).any(), "a cell is a run of each table that has it"
    # A seed: 7 schedules; SiT and PFT wide; LTG (0, 1, 0.2), (0, 1, 0.6) and (0.7, 1, 0.2); λ = 0.1.
    assert frame["training"].nunique() == 2 * (7 + 2 + 3 + 1)
    assert len(list((smoke / "trainings").iterdir())) == 26
    one = [read_sweep(f"{name}-smoke", place) for name in ("difficulty", "context_helps", "context_uncertainty")]
    ltg = read_sweep("timestep_schedules-smoke", place).rows["LTG"]
    assert all(list(each.rows["PFT"].fingerprints) == list(ltg.fingerprints) for each in one)


def test_a_rerun_trains_nothing(smoke):
    before = results.runs(default_uri(smoke))
    text = (smoke / "reproduction" / "timestep_schedules-smoke.csv").read_text()
    assert run(paper.TIMESTEP_SCHEDULES, smoke) == DONE
    assert results.runs(default_uri(smoke))["run_id"].tolist() == before["run_id"].tolist()
    assert (smoke / "reproduction" / "timestep_schedules-smoke.csv").read_text() == text


def test_a_table_is_shown_as_far_as_it_is_measured(smoke, place, tmp_path, capsys, monkeypatch):
    """It is the table of the run; a storage that has nothing says so."""
    monkeypatch.setenv("COLUMNS", "250")
    before = len(results.runs(default_uri(smoke)))
    path = smoke / "reproduction" / "difficulty-smoke.md"
    text = path.read_text()
    path.unlink()
    assert _run(["reproduce", "difficulty", "--show", "--storage", str(smoke)]) == DONE
    shown = capsys.readouterr().out
    assert "difficulty-smoke: 2 of 2 cells are measured" in shown
    assert all(line in shown for line in read_sweep("difficulty-smoke", place).lines)
    assert path.read_text() == text
    assert len(results.runs(default_uri(smoke))) == before
    assert _run(["reproduce", "difficulty", "--show", "--storage", str(tmp_path / "none")]) == DONE
    assert "0 of 2 cells are measured" in capsys.readouterr().out
    assert not (tmp_path / "none" / "mlflow.db").exists(), "reading makes no database"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--executor", "local", "--ray-address", "head:6379"], "--executor local runs on this machine, without Ray"),
        (["--executor", "processes", "--workers", "2"], "runs each task in one process, and --workers is 2"),
        (["--executor", "tun"], "executor = 'tun': must be one of groups, local, processes, tune"),
    ],
)
def test_options_that_do_not_fit_an_executor_are_refused(tmp_path, capsys, given, message):
    try:
        code = exit_on_errors(lambda: _run(["reproduce", "difficulty", "--storage", str(tmp_path), *given]))
    except SystemExit as ended:
        code = ended.code
    assert code == USAGE_ERROR
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "trainings").exists()


def test_a_table_that_is_killed_and_continued_equals_the_uninterrupted_one(smoke, tmp_path):
    """SIGKILL once a cell is finished and the next is under way; then to its end."""
    command = ["reproduce", "difficulty", "--storage", str(tmp_path), "--executor", "local", "--cpus-per-trial", "1"]
    process = Start([PFORCE, *command], log=tmp_path / "log")
    end = time.monotonic() + 60 * PATIENCE
    while not list(tmp_path.glob("trainings/*/evaluations/*/samples.png")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert pforce(*command).returncode == DONE
    continued, whole = (measured(folder, "difficulty") for folder in (tmp_path, smoke))
    pd.testing.assert_frame_equal(continued.drop(columns=TIMES), whole.drop(columns=TIMES))
    frame = results.runs(default_uri(tmp_path))
    assert frame["fingerprint"].nunique() == len(frame) == 2


def test_a_row_is_one_line(smoke, tmp_path):
    """A newcomer's row is a cell more a seed, and nothing else is run."""
    more = (*paper.SCHEDULES, TableRow("LTG narrow", {"timesteps": LTG(0.7, 1.0, 0.2)}))
    table = replace(paper.TIMESTEP_SCHEDULES, rows=lambda scale: more)
    assert run(table, smoke) == DONE  # the same cell as one of ltg_grid
    found = read(table, SMOKE, Storage.open(smoke))
    assert found.measured["row"].tolist()[-1] == "LTG narrow"
    assert found.measured["n"].tolist()[-1] == 2


def test_errors_of_a_table_name_what_is_wrong():
    table = replace(paper.DIFFICULTY, statements=lambda scale: [
        Statement("x", Value("PFD", "fd", "a"), Value("PFT", "fd", "b"))])  # fmt: skip
    with pytest.raises(FieldError, match="statement on row = 'PFD': must be one of PFT"):
        sweep_of(table, SMOKE)
    table = replace(paper.DIFFICULTY, rows=lambda scale: [TableRow("PFT", {"timestep.m": 1.0})])
    with pytest.raises(ConfigError, match=r"row PFT: timestep\.m: unknown field.*did you mean timesteps.m"):
        sweep_of(table, SMOKE)
    seven = replace(paper.DIFFICULTY, statements=lambda scale: 7 * paper.DIFFICULTY.statements(scale)[:1])
    with pytest.raises(FieldError, match="statements = 7: must be at most 6"):
        sweep_of(seven, SMOKE)
    with pytest.raises(ConfigError, match="did you mean difficulty-smoke"):
        read_sweep("dificulty-smoke", Storage.open("none"))


def test_the_command_lists_tables_and_refuses_others(capsys):
    assert _run(["reproduce"]) == DONE
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    with pytest.raises(ConfigError, match="did you mean timestep_schedules"):
        _run(["reproduce", "timestep_schedule"])


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_dry_run_is_complete_and_says_that_the_data_are_missing(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)
    assert _run(["reproduce", name, "--scale", "paper", "--dry-run", "--storage", str(tmp_path / "runs")]) == DONE
    shown = capsys.readouterr().out
    for part in ("GPU-hours per seed", "400,000", "storage:", "device-hours:", "estimated from counted products",
                 "The data are not here", "imagenet256-latents"):  # fmt: skip
        assert part in shown, part
    assert not (tmp_path / "runs").exists(), "a dry run makes nothing"


def test_the_outlook_counts_what_there_is():
    """By hand: B/2 at 4 channels has 130.307 M parameters; forward and backward are three forward passes' products,
    but for the first layer, whose input needs no gradient; SiT's modulation is once an image, PFT's exact one once a
    patch, its interpolated one at 8 nodes."""
    cells = sweep_of(paper.TIMESTEP_SCHEDULES, SCALES["paper"]).cells()
    o = outlook(cells)
    assert (o.cells, o.trainings, o.steps) == (21, 21, 21 * 400_000)
    assert o.images_trained == 21 * 400_000 * 256
    b: Experiment = SCALES["paper"].base()
    assert parameter_count(b.model) == 130_307_360 or round(parameter_count(b.model) / 1e6, 3) == 130.307
    tokens, width = 256, 768
    a_block = tokens * (12 * width**2 + 6 * width**2) + 2 * tokens**2 * width
    exact = training_flops(replace(b.model, modulation="exact"))
    assert exact == pytest.approx(3 * 2 * 12 * a_block, rel=0.03)
    sit = training_flops(replace(b.model, difficulty_head=False))
    assert sit < 0.72 * exact
    assert training_flops(b.model) == pytest.approx(sit, rel=0.03)
    assert o.storage_bytes == pytest.approx(21 * 2 * 4 * 4 * 130.3e6, rel=0.01)
    assert outlook(sweep_of(paper.CONTEXT_HELPS, SCALES["paper"]).cells()).trainings == 3


def test_the_gpu_suite_does_what_is_missing_and_its_records_merge(smoke, openmoji_folder, tmp_path):
    """Two processes, on a machine without ray, mlflow and pydantic; a second call does nothing; the numbers are those
    of the command."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(
        "import sys\nfor name in ('ray', 'mlflow', 'pydantic', 'sqlalchemy', 'tyro', 'optuna'):\n"
        "    sys.modules[name] = None\n"
    )
    command = [
        sys.executable, "-m", "pforce_experiments.gpu_suite", "--scale", "smoke", "--tables", "timestep_schedules",
        "--rows", "LTG", "SiT", "--seeds", "1", "--processes", "2", "--data", str(openmoji_folder),
        "--out", str(tmp_path / "part"), "--storage", str(tmp_path / "runs"), "--minutes", "3",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{bare}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
        )

    for _ in range(2):
        done = call()
        assert done.returncode == DONE, done.stdout + done.stderr
    assert "0 cells to run" in done.stdout
    taken = exchange.import_lines(Storage.open(tmp_path / "merged"), tmp_path / "part.jsonl", pytest.fail)
    assert (taken.there, taken.sweeps) == (0, 1)
    found = results.runs(tmp_path / "merged").set_index("fingerprint")
    assert len(found) == 2
    theirs = results.runs(default_uri(smoke)).set_index("fingerprint")
    for fingerprint, each in found.iterrows():
        for name in ("fd/openmoji", "val/loss"):
            assert each[name] == pytest.approx(theirs.loc[fingerprint, name], rel=1e-4)
    stopped = call("--minutes", "0.1", "--out", str(tmp_path / "other"), "--storage", str(tmp_path / "new"))
    assert stopped.returncode == 4, stopped.stdout + stopped.stderr


class _Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.tags.append(tag)
        self.sources += [known["src"]] if "src" in known else []
        self.links += [known["href"]] if tag == "a" else []
        self.ids += [known["id"]] if "id" in known else []


def test_a_report_is_one_page_that_needs_nothing_else(smoke, tmp_path, capsys):
    sweeps = ["timestep_schedules-smoke", "denoising_schedules-smoke", "context_helps-smoke"]
    out = tmp_path / "page.html"
    assert _run(["report", *sweeps, "--out", str(out), "--storage", str(smoke)]) == DONE
    text = out.read_text(encoding="ascii")
    outline = _Outline()
    outline.feed(text)
    assert all(source.startswith("data:image/png;base64,") for source in outline.sources)
    # Three figures; samples of 7, 10 and 1 rows; uncertainty maps of each table that measures them.
    assert len(outline.sources) == 3 + 7 + 10 + 1 + 2
    assert outline.tags.count("table") == 3
    assert [link.removeprefix("#") for link in outline.links] == outline.ids == ["s0", "s1", "s2"]
    for part in ("viewport", "prefers-color-scheme:dark", "pforce reproduce timestep_schedules --scale smoke",
                 "LTG below SiT", "core-hours", "paper FID-10k"):  # fmt: skip
        assert part in text, part
    with pytest.raises(ConfigError, match=r"no such sweep.*did you mean ltg_grid-smoke"):
        _run(["report", "ltg_gird", "--out", str(out), "--storage", str(smoke)])


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").glob("0*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_on_the_smoke_run(path, smoke, monkeypatch):
    monkeypatch.setenv("PFORCE_STORAGE", str(smoke))
    monkeypatch.setenv("PFORCE_SCALE", "smoke")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("finished cells" in output.get("text", "") for output in outputs)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures or path.stem == "05_paper_tables"
    committed = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in committed.cells if cell.cell_type == "code"), "committed with outputs"


def test_hashes_of_the_data_are_those_of_the_committed_records(openmoji_folder):
    """So that `records import` makes cells done on this machine: the same packages draw the same images."""
    (first, *_) = legacy.read_lines(ROOT / "analysis" / "results" / "reproduction" / "cpu.jsonl")
    inputs = inputs_for(sweep_of(paper.DIFFICULTY, SCALES["cpu"]))
    assert {name: first["tags"][f"input.{name}"] for name in inputs.tags()} == inputs.tags()
