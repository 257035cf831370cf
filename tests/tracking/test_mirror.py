"""Runs that show a storage, in real stores. Oracles: MLflow's own client, and rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pforce import results
from pforce.storage import Storage, StorageError
from pforce.storage.identity import identity_of
from pforce.tracking import Mirror, Point, Shown, Tags, Tracker, View, default_uri
from pforce.tracking import mirror as mirrors
from pforce.tracking import page as pages
from pforce.tracking.view import DataSet
from tests.tracking.cells import AT, CELLS, curve, keyed, name_of, sqlite_mirror, tables, view
from tests.tracking.writer import RunSpec, Writer

pytestmark = pytest.mark.timeout(300)


def test_runs_show_their_views_and_are_made_once(any_mirror, request, tmp_path):
    """Twice, by two connections: the second finds nothing to do."""
    name = name_of(request)
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"png")
    uri = any_mirror.tracker.uri
    for number, expected in enumerate((Shown(made=3), Shown(there=3))):
        again = any_mirror if not number else Mirror(Tracker(uri, artifacts=tmp_path), any_mirror.storage)
        page = again.page(name)
        parent = page.ensure({page.key("sweep"): View(name, {Tags.KIND: "sweep", Tags.SWEEP: "sweep"})})
        views = {key: each.with_files([picture]) for key, each in keyed(page, *CELLS).items()}
        assert page.show(views, parent[page.key("sweep")].run_id) == expected
    frame = results.runs(uri, name)
    assert sorted(frame["fingerprint"]) == sorted(CELLS)
    assert set(frame["status"]) == {"FINISHED"}
    assert frame["parent"].nunique() == 1
    assert (frame["val/loss"] == 0.5).all()
    assert not {"undefined", "infinite"} & set(frame.columns)
    client = mlflow.MlflowClient(uri)
    for run_id in frame["run_id"]:
        run = client.get_run(run_id)
        assert curve(client, run_id) == [(64 * k, AT + k, 1 / k) for k in (1, 2, 3)]
        assert curve(client, run_id, "val/loss") == [(192, AT + 9, 0.5)]
        assert run.data.params == {"timesteps.m": "0.5", "seed": "0"}
        assert (run.info.start_time, run.info.end_time) == (AT, AT + 9)
        assert [file.path for file in client.list_artifacts(run_id)] == ["samples.png"]


def test_a_row_written_into_the_tables_is_what_mlflow_would_have_written(mirror, tmp_path):
    """Oracle: every row of every table with runs, of the same view through MLflow's interface."""
    other = sqlite_mirror(tmp_path / "other")
    other.database = None
    pages = [each.page("grid") for each in (mirror, other)]
    for page in pages:
        page.show(keyed(page, CELLS[0]))
    first, second = (tables(page.mirror.tracker.uri, CELLS[0]) for page in pages)
    assert first == second
    assert {table: len(rows) for table, rows in first.items() if rows} == {
        "runs": 1, "tags": 5, "params": 2, "metrics": 8, "latest_metrics": 4,
    }  # fmt: skip


def test_a_linked_data_set_is_what_mlflow_would_have_linked(mirror, tmp_path):
    """Oracle: the data sets that MLflow's client reads of runs that were written through its interface."""
    other = sqlite_mirror(tmp_path / "other")
    other.database = None
    data = DataSet("drawings 32", "d" * 32, '{"name": "drawings"}')
    read = []
    for each in (mirror, other):
        page = each.page("grid")
        for cells in ((CELLS[0],), CELLS[:2]):  # the second time one run is new, and the data set is there
            page.show(keyed(page, *cells, data=data))
        client = page.client
        found = [client.get_run(run_id).inputs.dataset_inputs for run_id in results.runs(each.tracker.uri)["run_id"]]
        read.append([[(dict(link.dataset), [dict(tag) for tag in link.tags]) for link in links] for links in found])
    assert read[0] == read[1]
    assert [len(links) for links in read[0]] == [1, 1]
    assert read[0][0][0][0]["name"] == "drawings 32"


def test_other_numbers_are_shown_and_the_curve_stays(any_mirror, request):
    """A record that was found elsewhere counts now; a curve's points are not repeated, though they have other times."""
    page = any_mirror.page(name_of(request))
    page.show(keyed(page, CELLS[0]))
    later = [Point(64 * k, AT + 1000 + k, {"train/loss": 1 / k, "train/mse": 2 / k}) for k in (1, 2, 3, 4)]
    changed = {page.key(CELLS[0]): view(CELLS[0], 0.25, points=lambda: later)}
    assert page.show(changed) == Shown(updated=1)
    assert page.show(changed) == Shown(there=1)
    (row,) = results.runs(any_mirror.tracker.uri, page.name).to_dict("records")
    assert row["val/loss"] == 0.25
    steps = [step for step, *_ in curve(page.client, row["run_id"])]
    assert steps == [64, 128, 192, 256]


def test_a_deleted_run_stays_deleted_until_it_is_restored(any_mirror, request):
    page = any_mirror.page(name_of(request))
    page.show(keyed(page, *CELLS))
    uri = any_mirror.tracker.uri
    gone = results.runs(uri, page.name).set_index("fingerprint")["run_id"][CELLS[1]]
    page.client.delete_run(gone)
    assert page.show(keyed(page, *CELLS)) == Shown(there=2, deleted=1)
    assert len(results.runs(uri, page.name)) == 2
    assert page.show(keyed(page, *CELLS), restore=True) == Shown(there=3)
    assert results.runs(uri, page.name).set_index("fingerprint")["run_id"][CELLS[1]] == gone


def test_a_deleted_page_stays_deleted_until_it_is_restored(any_mirror, request):
    said: list[str] = []
    any_mirror.say = said.append
    page = any_mirror.page(name_of(request))
    page.show(keyed(page, *CELLS))
    page.client.delete_experiment(page.experiment_id)
    again = any_mirror.page(page.name)
    assert again.show(keyed(again, *CELLS)) == Shown(deleted=3)
    assert "pforce mirror --restore" in said[0]
    restored = any_mirror.page(page.name, restore=True)
    assert restored.show(keyed(restored, *CELLS)) == Shown(there=3)


def test_pages_and_runs_that_people_renamed_stay_found(any_mirror, request):
    page = any_mirror.page(name_of(request))
    page.show(keyed(page, CELLS[0]))
    uri = any_mirror.tracker.uri
    (run_id,) = results.runs(uri, page.name)["run_id"]
    page.client.update_run(run_id, name="the good one")
    page.client.rename_experiment(page.experiment_id, f"My {page.name}")
    again = any_mirror.page(page.name)
    assert again.experiment_id == page.experiment_id
    assert again.show(keyed(again, CELLS[0], loss=0.25)) == Shown(updated=1)
    (row,) = results.runs(uri, page.name).to_dict("records")
    assert (row["run_id"], row["run_name"], row["sweep"], row["val/loss"]) == (
        run_id, "the good one", page.name, 0.25,
    )  # fmt: skip


def test_two_storages_with_sweeps_of_one_name_on_one_server(server, tmp_path, monkeypatch):
    """Each has a page of its own, whose name says whose it is; a copy of a storage has that of the original."""
    pages = []
    for number, who in enumerate(("ada", "ada", "grace")):
        monkeypatch.setenv("LOGNAME", who)  # where Python looks first
        place = Storage.open(tmp_path / str(number))
        page = Mirror(Tracker(server.uri, artifacts=tmp_path), place).page("shared")
        page.show(keyed(page, CELLS[0], loss=float(number)))
        pages.append(page)
    suffix = identity_of(Storage.open(tmp_path / "1"))[: mirrors.SUFFIX]
    names = [pages[0].client.get_experiment(page.experiment_id).name for page in pages]
    assert names == ["shared (ada)", f"shared (ada)-{suffix}", "shared (grace)"]
    for number, name in enumerate(names):
        assert results.runs(server.uri, name)["val/loss"].tolist() == [number]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "storage.json").write_bytes((tmp_path / "1" / "storage.json").read_bytes())
    copy = Mirror(Tracker(server.uri, artifacts=tmp_path), Storage.open(tmp_path / "copy")).page("shared")
    assert copy.show(keyed(copy, CELLS[0], loss=1.0)) == Shown(there=1)


def test_somebody_elses_experiment_of_that_name_is_left_alone(server, tmp_path):
    client = mlflow.MlflowClient(server.uri)
    other = client.create_experiment("others")
    run_id = client.create_run(other).info.run_id
    page = Mirror(Tracker(server.uri, artifacts=tmp_path), Storage.open(tmp_path)).page("others")
    page.show(keyed(page, CELLS[0]))
    assert page.experiment_id != other
    assert [run.info.run_id for run in client.search_runs([other])] == [run_id]


@pytest.mark.parametrize("where", ["sqlite", "server"])
def test_runs_of_earlier_versions_get_their_keys(where, server, tmp_path):
    """One killed and one finished of one cell, one killed of another: the finished one is taken, the others' too."""
    uri = default_uri(tmp_path) if where == "sqlite" else server.uri
    writer, name = Writer(uri, artifacts=tmp_path / "artifacts"), f"old-{where}"
    sweep = writer.open_sweep(name, "identity", {})
    ids = {}
    for what, cell, status in (("x", CELLS[0], "FINISHED"), ("y", CELLS[0], "KILLED"), ("z", CELLS[1], "KILLED")):
        ids[what] = writer.open_trial(sweep, RunSpec("old", cell, {"timesteps.m": 0.5}, {}))
        writer.log(ids[what], {"train/loss": 1.0}, step=64)
        writer.close(ids[what], status)
    mirror = Mirror(Tracker(uri, artifacts=tmp_path / "artifacts"), Storage.open(tmp_path))
    page = mirror.page(name, {CELLS[1]})
    assert page.experiment_id == sweep.experiment_id
    assert page.ensure({page.key("identity"): View(name, {})})[page.key("identity")].run_id == sweep.run_id
    assert page.show(keyed(page, *CELLS), sweep.run_id) == Shown(made=1, updated=2)
    frame = results.runs(uri, name).set_index("run_id")
    assert len(frame) == 4
    assert frame.loc[[ids["x"], ids["z"]], "status"].tolist() == ["FINISHED"] * 2
    assert [step for step, *_ in curve(page.client, ids["z"])] == [64, 128, 192]
    again = mirror.page(name)
    assert again.show(keyed(again, *CELLS)) == Shown(there=3)


def test_of_two_runs_that_a_late_answer_made_one_stays(server, tmp_path):
    page = Mirror(Tracker(server.uri, artifacts=tmp_path), Storage.open(tmp_path)).page("late")
    page.show(keyed(page, CELLS[0]))
    page.client.create_run(page.experiment_id, tags={Tags.KEY: page.key(CELLS[0]), Tags.KIND: "trial"})
    assert len(results.runs(server.uri, "late")) == 2
    assert page.show(keyed(page, CELLS[0])) == Shown(there=1)
    assert results.runs(server.uri, "late")["status"].tolist() == ["FINISHED"]
    assert page.show(keyed(page, CELLS[0])) == Shown(there=1), "the other one is not thought to be deleted by a person"


def test_an_emptied_database_is_filled_again(mirror, tmp_path):
    page = mirror.page("grid")
    page.show(keyed(page, *CELLS))
    (tmp_path / "mlflow.db").unlink()
    mirror.tracker.again()
    again = mirror.page("grid")
    assert again.show(keyed(again, *CELLS)) == Shown(made=3)
    assert sorted(results.runs(mirror.tracker.uri)["fingerprint"]) == sorted(CELLS)


def test_pictures_follow_a_storage_that_is_moved(tmp_path):
    """With blanks and `%41` in its new name: those that were there, and later ones. Oracle: MLflow's own client."""
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"png")
    before = sqlite_mirror(tmp_path / "runs")
    page = before.page("grid")
    page.show({key: each.with_files([picture]) for key, each in keyed(page, CELLS[0]).items()})
    (tmp_path / "runs").rename(tmp_path / "my runs %41")
    after = sqlite_mirror(tmp_path / "my runs %41")
    page = after.page("grid")
    page.show({key: each.with_files([picture]) for key, each in keyed(page, *CELLS).items()})
    for run_id in results.runs(after.tracker.uri, "grid")["run_id"]:
        assert Path(page.client.download_artifacts(run_id, "samples.png")).read_bytes() == b"png"
    assert not (tmp_path / "runs").exists()


def test_a_name_that_mlflow_does_not_take_is_refused_at_once():
    with pytest.raises(ValueError, match="metric 'not: allowed!' of cell: MLflow takes letters"):
        View("cell", {}, metrics={"not: allowed!": 1.0})


def test_a_view_that_the_store_refuses_holds_up_no_other(any_mirror, request):
    """A file that is gone."""
    said: list[str] = []
    any_mirror.say = said.append
    any_mirror.database = None
    page = any_mirror.page(name_of(request))
    views = keyed(page, *CELLS[:2])
    views[page.key(CELLS[0])] = view(CELLS[0]).with_files([Path("gone.png")])
    shown = page.show(views)
    assert (shown.made, shown.refused) == (1, 1)
    assert "refuses files of cell a" in said[0]


def test_long_values_are_cut(mirror):
    page = mirror.page("grid")
    long = View("x" * 999, {Tags.KIND: "trial", Tags.ERROR: "e" * 9000}, {"p": "v" * 9000}, status="FAILED", ended=AT)
    assert page.show({page.key("long"): long}) == Shown(made=1)
    assert page.show({page.key("long"): long}) == Shown(there=1)


def test_the_identity_of_a_storage(tmp_path):
    place = Storage.open(tmp_path)
    first = identity_of(place)
    assert identity_of(place) == first
    assert identity_of(Storage.open(tmp_path / "other")) != first
    for content, match in ((b"{", "is damaged"), (b'{"format": 3, "id": "x"}', "is of format 3, this version reads")):
        (tmp_path / "storage.json").write_bytes(content)
        with pytest.raises(StorageError, match=match):
            identity_of(place)


def test_reading_of_all_keys(any_mirror, request, monkeypatch):
    """More than are asked for one by one."""
    monkeypatch.setattr(pages, "KEYS_A_CALL", 1)
    page = any_mirror.page(name_of(request))
    page.show(keyed(page, *CELLS))
    found: Mapping[str, Any] = page.find([page.key(cell) for cell in CELLS])
    assert set(found) == {page.key(cell) for cell in CELLS}


@pytest.mark.parametrize("theirs", [True, False])
def test_a_deleted_page_without_a_key(server, tmp_path, theirs):
    """One of an earlier version is restored with its runs, when that is asked for. A stranger's is left alone."""
    writer, name = Writer(server.uri), f"deleted-{theirs}"
    sweep = writer.open_sweep(name, "identity", {})
    run_id = writer.open_trial(sweep, RunSpec("old", CELLS[0], {"timesteps.m": 0.5}, {}))
    writer.client.delete_experiment(sweep.experiment_id)
    mirror = Mirror(Tracker(server.uri, artifacts=tmp_path), Storage.open(tmp_path))
    ours = {"f" * 32} if theirs else {CELLS[0]}
    if not theirs:
        page = mirror.page(name, ours)
        assert page.show(keyed(page, *CELLS)) == Shown(deleted=3)
    page = mirror.page(name, ours, restore=True)
    assert (page.experiment_id == sweep.experiment_id) is not theirs
    shown = page.show(keyed(page, *CELLS), restore=True)
    assert shown == (Shown(made=3) if theirs else Shown(made=2, updated=1))
    stage = writer.client.get_experiment(sweep.experiment_id).lifecycle_stage
    assert (stage == "deleted") is theirs
    if not theirs:
        assert results.runs(server.uri, name).set_index("fingerprint")["run_id"][CELLS[0]] == run_id


def test_what_is_said_of_other_results_goes(any_mirror, request):
    """Where numbers came from, and notes, once they are measured here; and the end is that of the new ones."""
    page = any_mirror.page(name_of(request))
    theirs = {Tags.ORIGIN: "theirs.jsonl", Tags.NOTES: "few images"}
    page.show({page.key(CELLS[0]): view(CELLS[0]).with_tags(theirs)})
    (row,) = results.runs(any_mirror.tracker.uri, page.name).to_dict("records")
    assert row["origin"] == "theirs.jsonl"
    assert page.show(keyed(page, CELLS[0], loss=0.25, ended=AT + 99)) == Shown(updated=1)
    run = page.client.get_run(row["run_id"])
    assert not {Tags.ORIGIN, Tags.NOTES} & set(run.data.tags)
    assert run.info.end_time == AT + 99
