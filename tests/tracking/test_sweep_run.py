"""A sweep's own run. Oracles: the records, the sweep's own table, MLflow's interface, and what a browser shows."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pforce import results
from pforce.base.console import DONE, make_console
from pforce.base.errors import FieldError
from pforce.commands.mirror import mirror_storage
from pforce.config import with_fields
from pforce.images import to_uint8
from pforce.metrics.names import MOST_HEADLINE, THROUGHPUT, headline
from pforce.orchestration.axes import Axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import execute
from pforce.orchestration.plan import Plan
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import sweep_frame, sweep_summary
from pforce.records.ledger import Ledger
from pforce.sampling import generate
from pforce.storage import Storage
from pforce.storage.identity import identity_of
from pforce.tracking import Tags, Tracker, default_uri
from pforce.tracking.charts import TAG, addresses, key_of_page
from pforce.tracking.live import CATCH_UP
from pforce.tracking.view import NOTE, key_of
from pforce.training import Callback, Record, TrainState
from pforce.training.checkpoint import snapshot_path
from pforce.trial.folder import training_folder
from pforce.trial.source import load_source
from tests.orchestration.conftest import make_plan, small_sweep
from tests.tracking.servers import MlflowServer
from tests.tracking.test_charts import state_of

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
SNAPSHOT, END = 64, 96
FILES = {"sweep.html", "table.json", "figure.png", "samples_side_by_side.png"}


def with_snapshot(*sigmas: float, **fields: Any) -> Sweep:
    """A sweep of trainings with a snapshot each."""
    sweep = small_sweep(Axis("timesteps.sigma", sigmas))
    return replace(sweep, base=with_fields(sweep.base, {"training.snapshots": (SNAPSHOT,), **fields}))


def run_plan(sweep: Sweep, storage: Path, *callbacks: Callback, **options: str) -> tuple[Plan, list[str]]:
    """A sweep that a local driver has run to its end, and what it has said."""
    plan, said = make_plan(sweep, storage, **options), io.StringIO()
    keep_sweep(plan)
    assert execute(plan, make_console(width=10_000, file=said), "local", callbacks=callbacks) == DONE
    return plan, said.getvalue().splitlines()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A sweep of two trainings with a snapshot each, run by a local driver."""
    return run_plan(with_snapshot(0.2, 0.5), tmp_path_factory.mktemp("swept"))[0]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[str]]:
    """A sweep whose artifacts cannot be written, as there is a file where their folder should be, and what it has said.
    Its rate is so small that no weight changes: the predicted difficulty is constant, and its correlation undefined."""
    root = tmp_path_factory.mktemp("refused")
    (root / "artifacts").write_text("in the way")
    return run_plan(with_snapshot(0.5, **{"optimizer.learning_rate": 1e-30}), root)


def runs_by_kind(uri: str) -> dict[str, list[Any]]:
    client, found = mlflow.MlflowClient(uri), {"sweep": [], "trial": []}
    for run in client.search_runs(["1"], max_results=1000):
        found[run.data.tags[Tags.KIND]].append(run)
    return found


def mirrored(root: Path, tracker: Tracker, said: list[str] | None = None) -> int:
    place = Storage.open(root)
    ledger = Ledger(place, (said if said is not None else []).append)
    return mirror_storage(place, tracker, ledger, make_console(quiet=True))


def everything(uri: str, name: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """All that the runs of a sweep's page show but measured times: run → tags' names, parameters, metrics, the steps of
    its curve, files and pictures."""
    client, found = mlflow.MlflowClient(uri), {}
    (page,) = client.search_experiments(filter_string=f"tags.`{Tags.NAME}` = '{name}'")
    for run in client.search_runs([page.experiment_id]):
        run_id, data = run.info.run_id, run.data
        timed = ("cost/", "system/", THROUGHPUT)
        curve = client.get_metric_history(run_id, "train/loss") if "train/loss" in data.metrics else []
        files = [file.path for folder in ("", "images") for file in client.list_artifacts(run_id, folder)]
        seen = str(data.metrics.get("cost/images_seen"))
        found[data.tags[Tags.KIND], data.params.get("timesteps.sigma", ""), seen] = {
            "status": run.info.status, "params": data.params, "names": set(data.metrics), "tags": set(data.tags),
            "metrics": {name: value for name, value in data.metrics.items() if not name.startswith(timed)},
            "curve": sorted((point.step, point.value) for point in curve),
            "files": sorted(re.sub(r"(.step.\d+).*(\.\w+)", r"\1\2", path) for path in files),
            "data": [each.dataset.digest for each in run.inputs.dataset_inputs],
        }  # fmt: skip
    return found


def differences(first: dict[Any, dict[str, Any]], second: dict[Any, dict[str, Any]]) -> list[tuple[Any, ...]]:
    """(run, what, in the first, in the second) of all that differs between two results of `everything`."""
    found = [(key, "there", key in first, key in second) for key in first.keys() ^ second.keys()]
    for key in first.keys() & second.keys():
        for what, value in first[key].items():
            other = second[key][what]
            if value != other:
                both = (value - other, other - value) if isinstance(value, set) else (value, other)
                found.append((key, what, *both))
    return found


def read(uri: str, run_id: str, name: str, folder: Path) -> bytes:
    return Path(mlflow.MlflowClient(uri).download_artifacts(run_id, name, str(folder))).read_bytes()


def check_own_run(plan: Plan, uri: str, folder: Path) -> None:
    (own,) = runs_by_kind(uri)["sweep"]
    assert {file.path for file in mlflow.MlflowClient(uri).list_artifacts(own.info.run_id)} == FILES
    table = sweep_summary(plan, sweep_frame(plan)).report.table
    shown = json.loads(read(uri, own.info.run_id, "table.json", folder))
    column = {name: [row[place] for row in shown["data"]] for place, name in enumerate(shown["columns"])}
    for name in ("val loss", "fd/openmoji", "n"):
        assert column[name] == table[name].tolist()
    page = read(uri, own.info.run_id, "sweep.html", folder).decode()
    assert page.count("data:image/png;base64,") >= 1 + len(table)
    best = float(table["fd/openmoji"].min())
    cells = len(plan.work)
    assert own.data.metrics["best/fd/openmoji"] == best
    assert (own.data.metrics["cells/planned"], own.data.metrics["cells/finished"]) == (cells, cells)
    assert f"fd/openmoji {best:.2f}" in own.data.tags[Tags.BEST]
    assert "too short to rank anything" in own.data.tags[NOTE]
    assert own.info.status == "FINISHED"


def test_the_own_run_has_the_table_and_a_note(swept, tmp_path):
    check_own_run(swept, default_uri(swept.options.root), tmp_path)


def test_cells_have_headline_metrics_and_a_table_of_all_others(swept, tmp_path):
    uri, stored = default_uri(swept.options.root), results.runs(swept.options.root).set_index("fingerprint")
    for run in runs_by_kind(uri)["trial"]:
        row = stored.loc[run.data.tags[Tags.FINGERPRINT]]
        measured = {name: float(row[name]) for name in row.index if "/" in name and isinstance(row[name], float)}
        measured = {name: value for name, value in measured.items() if math.isfinite(value)}
        points = ("train/", "system/")  # of the curve
        own = {name: value for name, value in run.data.metrics.items() if not name.startswith(points)}
        assert len(run.data.metrics) <= MOST_HEADLINE
        assert 0 < run.data.metrics["system/peak_memory_gib"] < 100
        assert 0 <= run.data.metrics["system/data_wait_share"] <= 1
        assert own == {name: measured[name] for name in headline(measured) if not name.startswith(points)}
        others = json.loads(read(uri, run.info.run_id, "numbers.json", tmp_path))
        assert others["columns"] == ["metric", "value"]
        assert {**own, **dict(others["data"])} == measured
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("shards 32", swept.inputs.data[:32])
        assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "numbers.json", "type": "table"}]


def test_a_training_has_the_distance_of_its_snapshot_at_its_images_seen(swept):
    uri, stored = default_uri(swept.options.root), results.runs(swept.options.root)
    client = mlflow.MlflowClient(uri)
    for run in runs_by_kind(uri)["trial"]:
        seen, training = int(run.data.metrics["cost/images_seen"]), run.data.tags[Tags.TRAINING]
        own = stored[(stored["training"] == training) & (stored["cost/images_seen"] <= seen)]
        expected = dict(zip(own["cost/images_seen"].astype(int), own["fd/openmoji"], strict=True))
        history = client.get_metric_history(run.info.run_id, "fd/openmoji")
        assert {point.step: point.value for point in history} == expected
        assert len(expected) == (2 if seen == END else 1)


def test_pictures_have_a_key_and_images_seen_as_their_step(swept):
    uri = default_uri(swept.options.root)
    client = mlflow.MlflowClient(uri)
    for run in runs_by_kind(uri)["trial"]:
        seen = int(run.data.metrics["cost/images_seen"])
        names = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
        found = {tuple(re.split(r"[+%]step[+%]|[+%]timestamp", name.removeprefix("images/"))[:2]) for name in names}
        keys = ("samples at guidance 1.0", "uncertainty")
        assert found == {(key, str(step)) for key in keys for step in {SNAPSHOT, seen}}
        assert ("training.gif" in {file.path for file in client.list_artifacts(run.info.run_id)}) == (seen == END)
    (animation, _) = sorted(swept.options.root.glob("trainings/*/evaluations/*/training.gif"))
    with Image.open(animation) as opened:
        assert opened.n_frames == 2


def test_a_lost_store_is_shown_again_by_the_mirror_and_then_left_alone(swept, tmp_path):
    uri = default_uri(tmp_path)
    place, tracker = Storage.open(swept.options.root), Tracker(uri, artifacts=tmp_path / "artifacts")
    console = make_console(width=200, record=True)
    for _ in range(2):
        assert mirror_storage(place, tracker, Ledger(place, print), console) == DONE
        check_own_run(swept, uri, tmp_path)
    own = runs_by_kind(uri)["sweep"][0]
    assert len(mlflow.MlflowClient(uri).get_metric_history(own.info.run_id, "cells/finished")) == 1


def test_the_printed_addresses_name_the_saved_view_and_the_table(swept):
    tracker, own = swept.tracker, identity_of(swept.options.place)
    page = key_of(own, "small")
    found = addresses(tracker, page, key_of(own, "small", swept.identity))
    (experiment,) = [each for each in tracker.client.search_experiments() if each.name == "small"]
    assert found["charts"].startswith(f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?")
    assert f"viewStateShareKey={key_of_page(page)}" in found["charts"]
    state = state_of(experiment.tags[TAG + key_of_page(page)])
    assert "params.`timesteps.sigma`" in state["selectedColumns"]
    (run,) = runs_by_kind(default_uri(swept.options.root))["sweep"]
    assert found["table"].endswith(f"/runs/{run.info.run_id}/artifacts/sweep.html")


def test_the_mirror_leaves_claims_and_damaged_pictures_out(swept, tmp_path):
    """A copy of the storage without the looks of the sweep's end: the mirror records none."""
    root = tmp_path / "copy"
    shutil.copytree(swept.options.root, root, ignore=shutil.ignore_patterns("looks", "mlflow.db*", "artifacts"))
    (damaged, *_) = sorted(root.glob("trainings/*/evaluations/*/samples.png"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    uri, said = default_uri(root), []
    place, tracker = Storage.open(root), Tracker(uri, artifacts=root / "artifacts")
    assert mirror_storage(place, tracker, Ledger(place, said.append), make_console(quiet=True)) == DONE
    assert any(str(damaged) in line for line in said)
    assert not list(root.rglob("looks/*"))
    kinds = runs_by_kind(uri)
    assert len(kinds["trial"]) == len(swept.work)
    page = read(uri, kinds["sweep"][0].info.run_id, "sweep.html", tmp_path).decode()
    assert "claims are left to" in page
    assert "nothing is compared" not in page


def test_weights_become_models_that_draw_the_same_images(swept, tmp_path):
    """Oracle: images drawn from the snapshot itself."""
    uri, console = default_uri(swept.options.root), make_console(width=200, record=True)
    place, tracker, client = swept.options.place, Tracker(uri, artifacts=tmp_path), mlflow.MlflowClient(uri)
    for said in ("4 models made", "0 models made, 4 already there"):
        assert mirror_storage(place, tracker, Ledger(place, print), console, models=True) == DONE
        assert said in console.export_text()
    for run in runs_by_kind(uri)["trial"]:
        (linked,) = run.outputs.model_outputs
        assert linked.step == run.data.metrics["cost/images_seen"]
        folder = place.root / training_folder(run.data.tags[Tags.TRAINING])
        source = load_source(snapshot_path(folder, linked.step))
        labels = torch.tensor([1, 0, 1])
        (drawn,) = generate(source.model, source.experiment.sampler, labels, seed=5, batch=3, device="cpu")
        model = mlflow.pyfunc.load_model(client.get_logged_model(linked.model_id).artifact_location)
        images = model.predict(pd.DataFrame({"class": labels.numpy()}), params={"seed": 5})
        assert np.array_equal(images, to_uint8(drawn.images).permute(0, 2, 3, 1))
    with pytest.raises(FieldError, match=r"class = .*0 … 10"):
        model.predict(pd.DataFrame({"class": [99]}))


@pytest.fixture(scope="module")
def server(swept: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    served = MlflowServer(tmp_path_factory.mktemp("served"), backend=default_uri(swept.options.root))
    served.start()
    yield served
    served.kill()


class Killer(Callback):
    """Kills a server at the first record of a training."""

    def __init__(self, server: MlflowServer) -> None:
        self.server = server

    def on_record(self, state: TrainState, record: Record) -> None:
        self.server.kill()


def test_a_server_that_is_away_through_all_of_it_loses_nothing(swept, server, tmp_path, monkeypatch):
    """Killed once the sweep has begun, and back after its end: the mirror shows what an undisturbed sweep does."""
    monkeypatch.setenv("PFORCE_FLUSH_SECONDS", "1")
    sweep = replace(with_snapshot(0.2, 0.5), name="away")
    _, said = run_plan(sweep, tmp_path / "runs", Killer(server), tracking_uri=server.uri)
    assert sum("has been away since" in line for line in said) == 1
    assert [line for line in said if line.endswith(CATCH_UP)] != []
    server.start()
    assert mirrored(tmp_path / "runs", Tracker(server.uri, artifacts=tmp_path)) == DONE
    undisturbed = everything(default_uri(swept.options.root), "small")
    assert len(undisturbed) == 5
    assert differences(everything(server.uri, "away"), undisturbed) == []


def test_an_artifact_store_that_refuses_pictures(refused, tmp_path):
    """The training, its numbers and the page's views are whole, one line names the cure, and then the mirror adds
    pictures."""
    plan, said = refused
    root = plan.options.root
    uri, tracker = default_uri(root), plan.tracker
    assert results.runs(root)["status"].tolist() == ["FINISHED"] * 2
    lines = [line for line in said if "refuses" in line]
    assert len([line for line in lines if "tracking store" in line and "files of" in line]) == 3
    (cure,) = [line for line in lines if "tracking store" not in line]
    assert cure.startswith("files or numbers of 3 runs are not in")
    assert "`pforce mirror` shows them" in cure
    assert not any("away" in line for line in said)
    before = everything(uri, "small")
    assert [each["status"] for each in before.values()] == ["FINISHED"] * 3
    assert not any(each["files"] for each in before.values())
    (own,) = runs_by_kind(uri)["sweep"]
    assert "too short to rank anything" in own.data.tags[NOTE]
    (page,) = tracker.client.search_experiments(filter_string=f"tags.`{Tags.NAME}` = 'small'")
    assert state_of(page.tags[TAG + key_of_page(key_of(identity_of(plan.options.place), "small"))])["compareRunCharts"]
    (root / "artifacts").unlink()
    assert mirrored(root, tracker) == DONE
    after = everything(uri, "small")
    for (kind, *_), each in after.items():
        files = set(each["files"])
        assert files == FILES if kind == "sweep" else {"samples.png", "numbers.json", "images"} <= files
    assert {what for _, what, *_ in differences(before, after)} == {"files", "tags"}, "which say that it has files"


def test_a_metric_that_is_undefined_at_a_cell(refused, tmp_path):
    """Oracle: JSON without NaN, as browsers read it."""
    plan, _ = refused
    row = results.runs(plan.options.root).iloc[0]
    undefined = [name for name in row.index if name.startswith("difficulty/pearson") and math.isnan(row[name])]
    assert "difficulty/pearson_t0.20" in undefined
    uri = default_uri(tmp_path)
    assert mirrored(plan.options.root, Tracker(uri, artifacts=tmp_path / "artifacts")) == DONE
    runs = runs_by_kind(uri)
    assert len(runs["trial"]) == 2
    for run in runs["trial"]:
        assert "fd/openmoji" in run.data.metrics
        assert not set(undefined) & set(run.data.metrics)
        numbers = json.loads(read(uri, run.info.run_id, "numbers.json", tmp_path), parse_constant=refuse)
        assert all(isinstance(value, float) or value in ("nan", "inf") for _, value in numbers["data"])
    own = runs["sweep"][0]
    table = json.loads(read(uri, own.info.run_id, "table.json", tmp_path), parse_constant=refuse)
    assert len(table["data"]) == 2
    assert "fd/openmoji" in own.data.tags[Tags.BEST]
    for name, text in mlflow.MlflowClient(uri).get_experiment("1").tags.items():
        if name.startswith(TAG):
            json.loads(json.dumps(state_of(text)), parse_constant=refuse)


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def test_pictures_of_a_storage_that_was_copied_and_moved(swept, tmp_path):
    """A sweep goes on in a copy, while the first one is still there, and after the copy was moved. Oracle: MLflow's own
    client, and the files of the first one."""
    first, copy, moved = swept.options.root, tmp_path / "copy", tmp_path / "moved"
    before = sorted(first.glob("artifacts/**/*"))
    shutil.copytree(first, copy)
    assert mirrored(copy, Tracker(default_uri(copy), artifacts=copy / "artifacts")) == DONE
    copy.rename(moved)
    run_plan(with_snapshot(0.2, 0.5, 0.3), moved)
    found = everything(default_uri(moved), "small")
    assert {sigma for _, sigma, _ in found} == {"", "0.2", "0.5", "0.3"}
    client = mlflow.MlflowClient(default_uri(moved))
    for run in client.search_runs(["1"]):
        folder = Path(client.download_artifacts(run.info.run_id, "")).resolve()
        assert folder.is_relative_to(moved)
        names = {path.name for path in folder.glob("**/*")}
        assert "sweep.html" in names if run.data.tags[Tags.KIND] == "sweep" else {"samples.png", "images"} <= names
    assert sorted(first.glob("artifacts/**/*")) == before


@pytest.mark.skipif(shutil.which("chromium") is None, reason="a browser is needed: Debian's chromium")
def test_a_browser_shows_what_varies_and_what_came_out(swept, server, tmp_path):
    own = identity_of(swept.options.place)
    found = addresses(swept.tracker, key_of(own, "small"), key_of(own, "small", swept.identity), host=server.uri)
    text = text_of(found["charts"], tmp_path)
    best = results.runs(swept.options.root)["fd/openmoji"].min()
    for expected in ("shared view", "4 matching runs", "timesteps.sigma vs. fd/openmoji", "Parallel Coordinates",
                     "sigma=0.2", "sigma=0.5", f"{best:.2f}"[:4], "train/loss", "samples at guidance 1.0",
                     "cost/images_seen vs. fd/openmoji", "Too short to rank anything; smaller is better"):  # fmt: skip
        assert expected in text, expected
    assert "No images found" not in text
    assert "sweep.html" in text_of(found["table"], tmp_path)


def text_of(address: str, folder: Path) -> str:
    """The text of a page once its scripts have run."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}",
        "--window-size=1600,3000", "--virtual-time-budget=60000", "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    body = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", done.stdout, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))
