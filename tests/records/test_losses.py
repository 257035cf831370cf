"""What MLflow may lose, for each door: a sweep, a search of samplers, an evaluation. Oracles: what it showed before,
the records, and that nothing is measured again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pforce import cli, results
from pforce.base.console import DONE, make_console
from pforce.commands.evaluate import evaluate
from pforce.commands.mirror import mirror
from pforce.executors.executor import Workforce
from pforce.orchestration.axes import Axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import execute
from pforce.orchestration.options import StoreOptions
from pforce.orchestration.plan import sweep_entry
from pforce.orchestration.sampler_report import make_subject
from pforce.orchestration.sampler_search import SearchSpace
from pforce.orchestration.sampler_sweep import SamplerSweep, run
from pforce.orchestration.sweep_report import sweep_frame
from pforce.records.sweeps import CellEntry, SweepEntry, read_sweep
from pforce.results import sweep_run
from pforce.results.shown import views_of
from pforce.storage import Storage
from pforce.tracking import Mirror, Tracker, TrackingError, default_uri
from pforce.tracking.live import CATCH_UP
from pforce.trial.source import load_source
from tests.orchestration.conftest import make_plan, small_sweep
from tests.support.asked import asked
from tests.support.starts import PFORCE, Start
from tests.tracking.servers import MlflowServer

pytestmark = [pytest.mark.timeout(600), pytest.mark.drill]
MISSING = ("run_id", "parent", "start_time", "last_activity", "end_time", "attempts", "source")
"""What a run that is made again has anew, what only events tell, and the path of a model that was copied."""
SWEEP = small_sweep(Axis("timesteps.sigma", (0.2, 0.5)))


class Doors:
    """A storage, and the commands that filled it."""

    def __init__(self, root: Path) -> None:
        self.root, self.console = root, make_console(quiet=True)

    def train(self, uri: str | None = None) -> None:
        plan = make_plan(SWEEP, self.root, tracking_uri=uri)
        keep_sweep(plan)
        assert execute(plan, self.console, "local") == DONE

    def model(self) -> Path:
        """The trained model of the smallest name."""
        return min(self.root.glob("trainings/*/snapshots/*"))

    def search(self, uri: str | None = None) -> None:
        place = Storage.open(self.root)
        subject = make_subject(load_source(self.model()), place, data=None, images=8, reference=16, seed=0)
        space = SearchSpace(nfe=(4, 6), ranges={"inner_steps": (2, 3)})
        found = run(
            SamplerSweep("thresholds", subject, space, 3), Tracker(uri or default_uri(self.root), artifacts=self.root),
            place, self.console, Workforce(),
        )  # fmt: skip
        assert found.code == DONE

    def evaluate(self, uri: str | None = None) -> None:
        """A model, and a folder of images."""
        images = self.root.parent / "images"
        if not images.exists():
            images.mkdir()
            for number in range(8):
                noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(images / f"{number}.png")
        common = {"tracking_uri": uri, "metrics": ("frechet",), "reference_images": 16}
        model = asked(self.model(), self.root, images=8, held_out=16, **common)
        for arguments in (model, asked(images, self.root, data="openmoji32_micro", **common)):
            assert evaluate(arguments) == DONE

    def all(self, uri: str | None = None) -> None:
        for door in (self.train, self.search, self.evaluate):
            door(uri)

    def shown(self, uri: str | None = None) -> pd.DataFrame:
        """What runs show, without what cannot be the same."""
        frame = results.runs(uri or default_uri(self.root)).sort_values(["sweep", "fingerprint"], ignore_index=True)
        return frame.drop(columns=[name for name in MISSING if name in frame]).sort_index(axis=1)

    def records(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("records/*/*"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    doors = Doors(tmp_path_factory.mktemp("losses") / "runs")
    doors.all()
    return doors.root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("losses-server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def doors(filled: Path, tmp_path: Path) -> Doors:
    shutil.copytree(filled, tmp_path / "runs")
    return Doors(tmp_path / "runs")


def test_a_deleted_run_stays_deleted(doors):
    before, records = doors.shown(), doors.records()
    client = mlflow.MlflowClient(default_uri(doors.root))
    for run_id in results.runs(default_uri(doors.root))["run_id"]:
        client.delete_run(run_id)
    doors.all()
    assert mirror(store=StoreOptions(storage=str(doors.root))) == DONE
    assert len(results.runs(default_uri(doors.root))) == 0
    assert mirror(store=StoreOptions(storage=str(doors.root)), restore=True) == DONE
    pd.testing.assert_frame_equal(doors.shown(), before)
    assert doors.records() == records


@pytest.mark.parametrize("by", ["doors", "mirror"])
def test_an_emptied_database_is_filled_again(doors, by):
    """By the same commands, or by `pforce mirror`: what was shown, and nothing is run."""
    before, records = doors.shown(), doors.records()
    assert len(before) >= 2 + 3 + 2
    (doors.root / "mlflow.db").unlink()
    if by == "doors":
        doors.all()
    for _ in range(2):
        assert mirror(store=StoreOptions(storage=str(doors.root))) == DONE
        pd.testing.assert_frame_equal(doors.shown(), before)
        assert doors.records() == records


def test_a_server_that_was_away_for_all_of_it_shows_it(doors, server):
    """The doors had the storage's own database; then three drivers of one sweep and a mirror at once, and the doors."""
    before, records = doors.shown(), doors.records()
    command = [PFORCE, "mirror", "--storage", str(doors.root), "--tracking-uri", server.uri]
    several = [Start(command, log=doors.root.parent / "mirror.log") for _ in range(3)]
    assert [process.wait(timeout=300) for process in several] == [DONE] * 3
    pd.testing.assert_frame_equal(doors.shown(server.uri), before, check_dtype=False)
    doors.all(server.uri)
    pd.testing.assert_frame_equal(doors.shown(server.uri), before, check_dtype=False)
    assert doors.records() == records
    client = mlflow.MlflowClient(server.uri)
    for run_id in results.runs(server.uri, SWEEP.name)["run_id"]:
        assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [
            16 * k for k in range(1, 7)
        ]
        assert {"samples.png", "uncertainty_maps.png"} <= {file.path for file in client.list_artifacts(run_id)}


def test_the_storage_and_its_page_agree(doors):
    """On every column that both have: parameters, headline metrics, and what a cell was made by."""
    shown, stored = (frame.set_index(["sweep", "fingerprint"]).sort_index()
                     for frame in (doors.shown(), results.runs(doors.root)))  # fmt: skip
    assert list(shown.index) == list(stored.index)
    both = [name for name in stored.columns.intersection(shown.columns) if name not in MISSING]
    assert len(both) > 60
    for name in both:
        pd.testing.assert_series_equal(stored[name], shown[name], check_dtype=False)


def test_a_store_that_is_away_hides_no_table(doors):
    """Nothing is missing: the table is the storage's, and the store's address is said to be wrong; with something
    missing nothing begins."""
    plan = make_plan(SWEEP, doors.root, tracking_uri="http://127.0.0.1:1")
    assert plan.missing == []
    assert ["nothing listens there" in note and CATCH_UP[1:] in note for note in plan.notes] == [True]
    assert execute(plan, doors.console, None) == DONE
    frame = sweep_frame(plan)
    assert frame[frame["sweep"] == SWEEP.name]["status"].tolist() == ["FINISHED"] * 2
    with pytest.raises(TrackingError, match="nothing listens there"):
        make_plan(small_sweep(steps=9, name="longer"), doors.root, tracking_uri="http://127.0.0.1:1")


@pytest.mark.parametrize("name", ["../../../etc", "/etc", "a'b", "A" * 32, ""])
def test_a_cell_of_a_strangers_file_names_no_path(tmp_path, name):
    """Its pictures would be read from there."""
    place, said = Storage.open(tmp_path), []
    cell = CellEntry("cell", name, {}, {}, digests=["0" * 32])
    SweepEntry("evaluations", "1" * 32, [cell]).write(place)
    assert read_sweep(place, "evaluations", "1" * 32, said.append) is None
    assert "is called by no digest" in said[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"params": ["a"]}, {"params": {"a:b": "1"}}, {"request": {"unknown": 1}}, {"images_seen": 10**30},
        {"digests": ["../x"]}, {"training": {"canonical": {}, "versions": {}, "parents": ["/etc"]}}, {"seed": "x"},
    ],
)  # fmt: skip
def test_an_odd_sweep_file_stops_nothing(doors, changes, capsys):
    """Each is said, and the others are shown."""
    before = doors.shown()
    cell = replace(CellEntry("odd", "0" * 32, {}, {}, digests=["0" * 32]), **changes)
    SweepEntry("odd", "1" * 32, [cell]).write(Storage.open(doors.root))
    (doors.root / "sweeps" / "odd" / f"{'2' * 32}.json").write_text("[" * 100_000)
    (doors.root / "mlflow.db").unlink()
    assert mirror(store=StoreOptions(storage=str(doors.root))) == DONE
    assert "odd" in capsys.readouterr().out
    after = doors.shown()
    pd.testing.assert_frame_equal(after[after["sweep"] != "odd"].reset_index(drop=True), before)


def test_another_storage_gets_all_of_it(doors, tmp_path):
    """Exported and imported: the same rows, evaluations of images too."""
    records(("export", "--out", str(tmp_path / "all.jsonl"), "--storage", str(doors.root)))
    records(("import", str(tmp_path / "all.jsonl"), "--storage", str(tmp_path / "other")))
    (ours, theirs) = (
        results.runs(root).sort_values(["sweep", "fingerprint"], ignore_index=True).drop(columns=["origin"])
        for root in (doors.root, tmp_path / "other")
    )
    pd.testing.assert_frame_equal(ours, theirs)


def records(words: tuple[str, ...]) -> None:
    assert cli._run(["records", *words]) == DONE


def test_a_sweep_that_was_mirrored_halfway_is_finished_later(doors):
    """Its own run says so, too."""
    plan = make_plan(SWEEP, doors.root)
    entry, place = sweep_entry(plan), Storage.open(doors.root)
    uri = f"sqlite:///{doors.root / 'other.db'}"
    page = Mirror(Tracker(uri, artifacts=doors.root), place).page(SWEEP.name)
    half = views_of(entry.cells[:1], place, plan.ledger)
    own = sweep_run._plain_view(entry, half)
    assert own.status == "KILLED"
    parent = page.ensure({page.key(entry.identity): own})[page.key(entry.identity)]
    page.show({page.key(cell): each for cell, each in half.items()}, parent.run_id)
    assert mirror((SWEEP.name,), store=StoreOptions(storage=str(doors.root), tracking_uri=uri)) == DONE
    assert page.client.get_run(parent.run_id).info.status == "FINISHED"
