"""Results taken from storage to storage, and out of commit 0641df2. Oracles: the numbers that were put or committed."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import mlflow
import pytest
from packaging.version import Version

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.cli import _run
from pforce.config import with_fields
from pforce.data import Manifest
from pforce.orchestration.axes import Axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.sweep import Sweep
from pforce.records import legacy
from pforce.records.exchange import export, import_lines, import_storage
from pforce.records.ledger import RECORDS
from pforce.records.packing import pack
from pforce.records.record import RecordError
from pforce.records.sweeps import SWEEPS, read_sweeps
from pforce.results import runs
from pforce.storage import Storage
from pforce.training.checkpoint import saved
from pforce.training.curve import read_curve
from pforce.trial.migrate import carry_lines
from pforce_experiments.openmoji32 import openmoji32_micro
from tests.orchestration.conftest import make_plan, small_sweep
from tests.results.conftest import known

THEN = Path(__file__).parent / "commit_0641df2"
COMMITTED = Path(__file__).resolve().parents[2] / "analysis" / "results" / "reproduction"
METRICS = {"fd/openmoji": 5.25, "val/loss": 0.75, "cost/training_seconds": 3.0}


@pytest.fixture
def planned(tmp_path) -> Plan:
    """A sweep of one cell, planned on a storage that has its numbers."""
    found = make_plan(small_sweep(), tmp_path / "there")
    keep_sweep(found)
    known(found.work[0], METRICS, found.ledger)
    return found


def silent(line: str) -> None:
    raise AssertionError(line)


def test_a_cell_that_was_imported_is_done(planned, tmp_path):
    """Another machine's cell is not measured again, its numbers are equal, and its row says where they are from."""
    path = tmp_path / "numbers.jsonl"
    records, sweeps = export(planned.options.place, [], path, silent)
    assert (records, sweeps) == (len(list(planned.ledger.all())), 1)
    here = Storage.open(tmp_path / "here")
    assert import_lines(here, path, silent) == (records, 0, 1)
    assert import_lines(here, path, silent) == (0, records, 1)
    again = make_plan(small_sweep(), tmp_path / "here")
    assert again.missing == []
    (row,) = runs(tmp_path / "here").to_dict("records")
    assert {name: row[name] for name in METRICS} == METRICS
    assert row["origin"] == "numbers.jsonl"
    (before,) = runs(tmp_path / "there").to_dict("records")
    assert before["origin"] is None
    assert row["fingerprint"] == before["fingerprint"]


def test_exported_files_are_equal_after_a_journey(planned, tmp_path):
    """Out, in, out again: the same lines but for their origin, which the first journey gives."""
    files = [tmp_path / f"{index}.jsonl" for index in range(3)]
    export(planned.options.place, [], files[0], silent)
    for number in (1, 2):
        place = Storage.open(tmp_path / f"copy{number}")
        import_lines(place, files[number - 1], silent)
        export(place, [], files[number], silent)
    lines = [path.read_text().splitlines() for path in files]
    assert sorted(lines[1]) == sorted(lines[2])
    assert [line.replace('"origin": "0.jsonl"', '"origin": null') for line in sorted(lines[1])] == sorted(lines[0])


def test_one_bad_line_and_nothing_is_taken(planned, tmp_path):
    path = tmp_path / "numbers.jsonl"
    export(planned.options.place, [], path, silent)
    path.write_text(path.read_text() + '{"kind": "weights"}\n')
    here = Storage.open(tmp_path / "here")
    with pytest.raises(RecordError, match=rf"line {len(path.read_text().splitlines())}"):
        import_lines(here, path, silent)
    assert not (here.root / RECORDS).exists()


def test_another_storage_is_taken_in(planned, tmp_path):
    """Records, sweeps, and what they keep for figures."""
    here = Storage.open(tmp_path / "here")
    first = import_storage(here, planned.options.place, silent)
    assert (first.made, first.there, first.sweeps) == (len(list(planned.ledger.all())), 0, 1)
    assert runs(here.root)["val/loss"].tolist() == [0.75]
    assert import_storage(here, planned.options.place, silent).made == 0


def test_a_damaged_record_is_cured_by_an_import(planned, tmp_path):
    path = tmp_path / "numbers.jsonl"
    export(planned.options.place, [], path, silent)
    for record in (planned.options.place.root / RECORDS).rglob("*.json"):
        record.write_bytes(b"")
    assert runs_quietly(planned.options.place) == 0
    assert import_lines(planned.options.place, path, lambda line: None).made > 0
    assert runs_quietly(planned.options.place) == 1


def runs_quietly(place: Storage) -> int:
    from pforce.results.stored import storage_frame

    return len(storage_frame(place, say=lambda line: None))


def test_the_commands(planned, tmp_path, capsys):
    """Names that are not there are said with the nearest; list and show print what was put."""
    there, path = str(planned.options.root), tmp_path / "numbers.jsonl"
    assert _run(["records", "export", planned.sweep.name, "--out", str(path), "--storage", there]) == DONE
    with pytest.raises(ConfigError, match=r"no such sweep.*did you mean small"):
        _run(["records", "export", "smal", "--out", str(path), "--storage", there])
    assert _run(["records", "import", str(path), "--storage", str(tmp_path / "here")]) == DONE
    assert "0 already there" in capsys.readouterr().out
    assert _run(["records", "list", "--storage", str(tmp_path / "here"), "--every"]) == DONE
    printed = capsys.readouterr().out
    assert "image_metric" in printed
    digest = planned.work[0].parts.weights.digest
    assert digest[:12] in printed
    assert _run(["records", "show", digest[:8], "--storage", str(tmp_path / "here")]) == DONE
    assert json.loads(capsys.readouterr().out)["digest"] == digest
    assert _run(["records", "forget", digest, "--reason", "a test", "--storage", str(tmp_path / "here")]) == DONE
    assert make_plan(small_sweep(), tmp_path / "here").missing == planned.work


def test_a_packed_storage_gives_the_same_to_every_command(planned, tmp_path, capsys, monkeypatch):
    """The export byte for byte, what list and show print, the frame of results, an import of the storage, the plan: of
    loose records, of packed ones, and of half of each."""
    monkeypatch.setenv("COLUMNS", "200")
    places = [planned.options.root, tmp_path / "packed", tmp_path / "mixed"]
    for place in places[1:]:
        shutil.copytree(places[0], place)
        assert pack(Storage.open(place), silent, older_than=0, settle=0).after.loose == 0
    for each in sorted(places[0].glob("records/??/*"))[::2]:
        shutil.copyfile(each, places[2] / each.relative_to(places[0]))
    digest, found = planned.work[0].parts.weights.digest, []
    for number, place in enumerate(places):
        out, here = tmp_path / f"{number}.jsonl", Storage.open(tmp_path / f"import{number}")
        export(Storage.open(place), [], out, silent)
        assert _run(["records", "list", "--every", "--storage", str(place)]) == DONE
        assert _run(["records", "show", digest, "--storage", str(place)]) == DONE
        frame = runs(place).drop(columns="source", errors="ignore").to_json(default_handler=str)
        taken = import_storage(here, Storage.open(place), silent)
        digests = sorted(name.rpartition("/")[2].partition(".")[0] for name in here.sizes(RECORDS))
        found.append((out.read_bytes(), capsys.readouterr().out, frame, taken, digests))
        assert make_plan(small_sweep(), place).missing == []
    for several in zip(*found, strict=True):
        assert several[1:] == 2 * several[:1]
    assert found[0][0].count(b"\n") == 1 + found[0][3].made


@pytest.mark.parametrize(
    "harm", [lambda text: text[:-20], lambda text: text.replace("0.2", "0.3"), lambda text: "", lambda text: "[]"]
)
def test_a_damaged_sweep_file_is_said_and_its_records_stay(planned, harm):
    (path,) = (planned.options.root / SWEEPS).rglob("*.json")
    path.write_text(harm(path.read_text()))
    said: list[str] = []
    assert list(read_sweeps(planned.options.place, said.append)) == []
    assert len(said) == 1
    assert str(path) in said[0]
    assert make_plan(small_sweep(), planned.options.root).missing == []
    keep_sweep(planned)
    assert len(list(read_sweeps(planned.options.place, said.append))) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_storage_that_may_not_be_written(planned, tmp_path):
    """It can be read; what writes says so before anything else."""
    planned.options.root.chmod(0o500)
    assert len(runs(planned.options.root)) == 1


# --- commit 0641df2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_committed_results_of_then_are_carried_over(tmp_path, name):
    """Every line, with every number equal to the last bit; twice changes nothing."""
    path = COMMITTED / f"{name}.jsonl"
    lines = legacy.read_lines(path)
    storage = Storage.open(tmp_path)
    carried = carry_lines(path, storage, silent)
    assert (carried.cells + carried.there, carried.refused) == (len(lines), [])
    again = carry_lines(path, storage, silent)
    assert (again.cells + again.there, again.refused) == (len(lines), [])
    frame = runs(tmp_path).set_index(["sweep", "run_name"])
    assert len(frame) == len({(line["sweep"], line["name"]) for line in lines})
    for line in lines:
        row = frame.loc[line["sweep"], line["name"]]
        for metric, value in line["metrics"].items():
            if metric.startswith(("cost/", "throughput/")):  # sums of the parts' costs, in another order
                assert row[metric] == pytest.approx(value, rel=1e-9), metric
            else:
                assert row[metric] == value, metric
        assert row["origin"] == path.name


def test_a_line_of_then_that_was_changed_is_refused(tmp_path):
    lines = [json.loads(line) for line in (COMMITTED / "cpu.jsonl").read_text().splitlines()[:2]]
    lines[1]["params"]["timesteps.sigma"] = "0.31"
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    carried = carry_lines(path, Storage.open(tmp_path / "runs"), silent)
    assert carried.cells == 1
    assert len(carried.refused) == 1


def half() -> Sweep:
    base = with_fields(openmoji32_micro(), {
        "timesteps.m": 0.7, "model.depth": 1, "model.width": 8, "model.heads": 2, "training.images": 1280,
        "training.checkpoint_every": 500, "evaluation.images": 16, "evaluation.held_out_images": 32,
        "evaluation.label_images": 32, "evaluation.reference_images": 32, "sampler.num_function_evaluations": 4,
    })  # fmt: skip
    return Sweep("half", base, (Axis("timesteps.sigma", (0.2, 0.4, 0.6)),), (0,))


def test_a_storage_of_then_goes_on(tmp_path, openmoji_folder, capsys):
    """Half a sweep: two cells are found with their numbers, the third one's training too, and nothing is trained."""
    if Version(mlflow.__version__) < Version("3.17"):
        pytest.skip("its database was written by MLflow 3.17, whose schema an older one cannot read")
    with tarfile.open(THEN / "storage.tar.xz") as archive:
        archive.extractall(tmp_path / "runs")
    before = sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file())
    assert _run(["records", "migrate", "--storage", str(tmp_path / "runs")]) == DONE
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 trainings carried over" in printed
    assert "2 cells carried over, 0 refused" in printed
    assert all(path.exists() for path in before)
    then = json.loads((THEN / "results.json").read_text())
    frame = runs(tmp_path / "runs", "half")
    for row in frame.to_dict("records"):
        metrics = then[str(float(row["timesteps.sigma"]))]["metrics"]
        assert {name: row[name] for name in metrics if not name.startswith(("cost/", "thr"))} == {
            name: value for name, value in metrics.items() if not name.startswith(("cost/", "thr"))
        }
    assert sorted(frame["timesteps.sigma"]) == [0.4, 0.6]
    trainings = sorted((tmp_path / "runs" / "trainings").iterdir())
    assert [path.name for folder in trainings for path in saved(folder)] == ["1280"] * 3
    assert all(read_curve(folder)[-1].images_seen == 1280 for folder in trainings)

    of_then = json.loads(next((tmp_path / "runs" / "trials").glob("*/checkpoints/*/meta.json")).read_text())
    if of_then["stream"]["manifest"] != Manifest.load(openmoji_folder).hash:
        pytest.skip("other versions draw other images here than drew those of the storage")
    again = plan(half(), Options(storage=str(tmp_path / "runs")), make_console())
    assert [item.experiment.timesteps.sigma for item in again.missing] == [0.2]  # type: ignore[attr-defined]
