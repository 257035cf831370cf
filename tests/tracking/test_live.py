"""A sweep's page while the sweep runs, in real stores. Oracle: MLflow's client, and the clock."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from typing import Any

import mlflow
import pytest

from pforce import results
from pforce.storage import Storage
from pforce.tracking import Live, Mirror, Point, Shown, Tags, Tracker, TrackingError, View, checks, default_uri
from pforce.tracking import live as lives
from tests.support.clock import PATIENCE
from tests.tracking.pages import Page, point, until, whole
from tests.tracking.wire import Wire

pytestmark = [pytest.mark.timeout(300), pytest.mark.process]


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    return Tracker(default_uri(tmp_path), artifacts=tmp_path / "artifacts")


def test_a_page_shows_curves_as_they_come_and_at_the_end_what_records_say(tracker, tmp_path):
    picture = tmp_path / "samples.png"
    picture.write_bytes(b"png")
    with Page(tracker, tmp_path) as page:
        page.live.open({"version.pforce": "1"})
        for cell in "ab":
            page.start(cell)
        for step in (1, 2, 3):
            for cell in "ab":
                page.log(cell, step)
            until(lambda step=step: page.steps("a") == list(range(1, step + 1)))
            assert page.runs()["status"].tolist() == ["RUNNING"] * 2
        page.live.tag("a", {Tags.WARNING: "x" * 9000, Tags.ATTEMPTS: "2"})
        page.live.close("a", "FINISHED", lambda: whole("a").with_files([picture]))
        page.live.tag("b", {Tags.REASON: "diverged"})
        page.live.close("b", "FAILED")
        page.live.end("FAILED", {"trials": "2"})
        assert page.live.finish() == 0
    assert page.said == []
    frame = page.runs()
    assert frame["status"].to_dict() == {"a": "FINISHED", "b": "FAILED"}
    assert frame["reason"].dropna().to_dict() == {"b": "diverged"}
    assert (frame["val/loss"]["a"], frame["attempts"]["a"], frame["training"]["a"]) == (0.5, 2, "t")
    assert page.steps("a") == [1, 2, 3, 4], "the last one is of the records"
    assert [file.path for file in tracker.client.list_artifacts(frame["run_id"]["a"])] == ["samples.png"]
    parent = tracker.client.get_run(frame["parent"]["a"])
    assert (parent.info.status, parent.data.tags["trials"]) == ("FAILED", "2")


def test_a_trial_that_is_taken_up_again_is_one_run_with_each_point_once(tracker, tmp_path):
    """Killed after its third point, two of which were in a checkpoint; the third comes again, at another time."""
    with Page(tracker, tmp_path) as page:
        page.live.open({})
        page.start("a")
        page.log("a", 1, 2, 3)
        page.live.tag("a", {Tags.REASON: "stopped"})
        page.live.close("a", "KILLED")
        page.live.end("KILLED")
        assert page.live.finish() == 0
    first = page.runs()
    assert first["status"]["a"] == "KILLED"
    with Page(tracker, tmp_path) as again:
        again.live.open({})
        again.start("a", past=lambda: [point(1), point(2)])
        again.live.log("a", Point(3, 1_800_000_000_000, {"train/loss": 3 / 7}))
        until(lambda: again.runs()["status"]["a"] == "RUNNING")
        assert again.runs()["reason"]["a"] is None
        again.live.close("a", "FINISHED", lambda: whole("a"))
        again.live.end("FINISHED")
        assert again.live.finish() == 0
    frame = again.runs()
    assert frame["run_id"].tolist() == first["run_id"].tolist()
    assert frame["parent"].tolist() == first["parent"].tolist()
    assert again.steps("a") == [1, 2, 3, 4]


def test_what_earlier_calls_left_is_shown_beside(tracker, tmp_path):
    shown = []

    def before(page: Any, parent: str, between: Any) -> None:
        between(0)
        shown.append(page.show({page.key("old"): whole("old")}, parent))

    with Page(tracker, tmp_path, before=before) as page:
        page.live.open({})
        page.start("a")
        page.live.close("a", "FINISHED", lambda: whole("a"))
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    assert shown == [Shown(made=1)]
    assert page.runs()["status"].tolist() == ["FINISHED"] * 2
    assert page.runs()["parent"].nunique() == 1


@pytest.mark.parametrize("loss", ["file", "rows", "page"])
def test_a_database_that_is_emptied_meanwhile_is_filled_again(tracker, tmp_path, loss):
    """Its file deleted, its runs gone for good, or the page with them: everything that was told is there at the end."""
    with Page(tracker, tmp_path, before=lambda page, parent, between: None) as page:
        page.live.open({})
        for cell in "ab":
            page.start(cell)
            page.log(cell, 1)
        page.live.close("a", "FINISHED", lambda: whole("a"))
        assert page.live.flush() == 0
        if loss == "file":
            (tmp_path / "mlflow.db").unlink()
        else:
            engine = tracker.client._tracking_client.store.engine
            names = ["latest_metrics", "metrics", "params", "tags", "runs"]
            names += ["experiment_tags", "experiments"] if loss == "page" else []
            with engine.begin() as connection:
                for name in names:
                    connection.exec_driver_sql(f"DELETE FROM {name}")
        page.log("b", 2)
        page.live.close("b", "FINISHED", lambda: whole("b"))
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    frame = page.runs()
    assert frame["status"].to_dict() == {"a": "FINISHED", "b": "FINISHED"}
    assert frame["parent"].nunique() == 1
    for cell in "ab":
        assert page.steps(cell) == [1, 2, 3, 4]
    assert tracker.client.get_run(frame["parent"]["a"]).info.status == "FINISHED"


def test_a_run_that_a_person_deletes_meanwhile_stays_deleted(tracker, tmp_path):
    with Page(tracker, tmp_path) as page:
        page.live.open({})
        for cell in "ab":
            page.start(cell)
            page.log(cell, 1)
        assert page.live.flush() == 0
        tracker.client.delete_run(page.runs()["run_id"]["a"])
        for cell in "ab":
            page.log(cell, 2)
            page.live.close(cell, "FINISHED", lambda cell=cell: whole(cell))
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    assert page.said == []
    assert page.runs()["status"].to_dict() == {"b": "FINISHED"}


def test_a_page_that_a_person_has_deleted_is_said_and_the_sweep_goes_on(tracker, tmp_path):
    with Page(tracker, tmp_path) as page:
        page.live.open({})
        assert page.live.flush() == 0
    (page,) = tracker.client.search_experiments(filter_string="tags.`pforce.name` = 'grid'")
    tracker.client.delete_experiment(page.experiment_id)
    said: list[str] = []
    with Live(Mirror(tracker, Storage.open(tmp_path), said.append), "grid", "identity", said.append) as live:
        live.open({})
        live.start("a", "cell a", {}, {})
        live.close("a", "FINISHED", lambda: whole("a"))
        live.end("FINISHED")
        assert live.finish() == 0
    assert len(said) == 1
    assert "`pforce mirror --restore` shows it again" in said[0]


def test_a_trial_that_is_refused_holds_up_no_other(tracker, tmp_path):
    """A name that MLflow forbids, a file that is gone."""
    with Page(tracker, tmp_path) as page:
        page.live.open({})
        page.live.start("a", "cell a", {"not: allowed!": "1"}, {})
        for cell in "bc":
            page.start(cell)
            page.log(cell, 1)
        page.live.close("b", "FINISHED", lambda: whole("b").with_files([tmp_path / "gone.png"]))
        page.live.close("c", "FINISHED", lambda: whole("c"))
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    assert page.runs()["status"]["c"] == "FINISHED"
    assert ["refuses cell a" in page.said[0], "refuses files of cell b" in page.said[1]] == [True, True]
    assert ["files or numbers of 2 runs are not in" in page.said[2], len(page.said)] == [True, 3]


def test_a_store_that_cannot_be_written_is_an_error_before_any_training(tracker, tmp_path):
    (tmp_path / "storage.json").write_text("{")
    with pytest.raises(Exception, match=r"storage\.json is damaged"):
        Mirror(tracker, Storage.open(tmp_path))
    (tmp_path / "storage.json").unlink()
    with Page(tracker, tmp_path) as page:
        page.live.mirror.alone = _refuses
        with pytest.raises(TrackingError, match="cannot be written: cannot be leased"):
            page.live.open({})


def _refuses(name: str) -> Any:
    raise OSError("cannot be leased")


def test_a_wrong_flush_time_is_refused(tracker, tmp_path, monkeypatch):
    monkeypatch.setenv("PFORCE_FLUSH_SECONDS", "soon")
    with pytest.raises(TrackingError, match="PFORCE_FLUSH_SECONDS = soon: must be a number of seconds"):
        Page(tracker, tmp_path)


def test_a_training_that_another_driver_was_at(tracker, tmp_path):
    """It is stopped after three points, two of them in its checkpoint; this one had waited, and goes on."""
    with Page(tracker, tmp_path) as first, Page(tracker, tmp_path) as second:
        for page in (first, second):
            page.live.open({})
            page.start("a")
            assert page.live.flush() == 0
        first.log("a", 1, 2, 3)
        first.live.tag("a", {Tags.REASON: "stopped"})
        first.live.close("a", "KILLED")
        first.live.end("KILLED")
        assert first.live.finish() == 0
        second.live.again("a")
        second.live.log("a", Point(3, 1_800_000_000_000, {"train/loss": 3 / 7}))
        until(lambda: second.runs()["status"]["a"] == "RUNNING")
        second.live.close("a", "FINISHED", lambda: whole("a"))
        second.live.end("FINISHED")
        assert second.live.finish() == 0
    frame = second.runs()
    assert (frame["status"]["a"], frame["reason"]["a"]) == ("FINISHED", None)
    assert second.steps("a") == [1, 2, 3, 4]
    assert tracker.client.get_run(frame["parent"]["a"]).info.status == "FINISHED"


def test_a_run_that_cannot_be_written_holds_up_no_other(tracker, tmp_path, monkeypatch):
    """Whatever it raises, again and again."""
    monkeypatch.setattr(lives, "PERIOD_SECONDS", 0.05)

    def broken() -> Any:
        raise RuntimeError("no library for these artifacts")

    with Page(tracker, tmp_path) as page:
        page.live.open({})
        for cell in "ab":
            page.start(cell)
        page.live.close("a", "FINISHED", lambda: replace(whole("a"), files=broken))
        page.live.close("b", "FINISHED", lambda: whole("b"))
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    assert page.runs()["status"].to_dict() == {"a": "FINISHED", "b": "FINISHED"}
    assert ["refuses files of cell a: no library for these artifacts" in line for line in page.said] == [True, False]
    assert "once what refuses them is mended, `pforce mirror` shows them" in page.said[1]
    mirror = Mirror(tracker, Storage.open(tmp_path))
    shown = mirror.page("grid")
    again = {shown.key(cell): whole(cell) for cell in "ab"}
    assert shown.show(again) == Shown(updated=1, there=1), "what was not shown whole is not marked so"


def test_records_that_are_not_to_be_seen_yet(tracker, tmp_path, monkeypatch):
    """Looked for again; those that do not come are left to `pforce mirror`."""
    monkeypatch.setattr(lives, "PERIOD_SECONDS", 0.05)
    looks: list[str] = []

    def late() -> View | None:
        looks.append("a")
        return whole("a") if len(looks) > 2 else None

    with Page(tracker, tmp_path) as page:
        page.live.open({})
        for cell in "ab":
            page.start(cell)
        page.live.close("a", "FINISHED", late)
        page.live.close("b", "FINISHED", lambda: None)
        page.live.end("FINISHED")
        assert page.live.finish() == 1
    assert len(looks) == 3
    frame = page.runs()
    assert frame["status"].tolist() == ["FINISHED"] * 2
    assert frame["val/loss"].dropna().to_dict() == {"a": 0.5}
    assert lives.CATCH_UP in page.said[-1]


def test_what_earlier_calls_left_is_tried_again(tracker, tmp_path):
    calls = []

    def before(page: Any, parent: str, between: Any) -> None:
        calls.append(parent)
        if len(calls) == 1:
            raise ConnectionError("Connection refused")

    with Page(tracker, tmp_path, before=before) as page:
        page.live.open({})
        until(lambda: len(calls) == 2)
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    assert ["has been away since" in page.said[0], "is back after" in page.said[1]] == [True, True]


# --- a real server, and what networks do to it ---------------------------------------------------------------------


@pytest.mark.parametrize("late", [None, 3.0])
def test_a_creation_whose_answer_is_lost_makes_one_run(server, tmp_path, late):
    """The server made the run and its answer never came; or it makes it after another one was made."""
    wire = Wire(server.port, late)
    with Page(Tracker(wire.uri, artifacts=tmp_path), tmp_path, f"lost {late}") as page:
        page.live.open({})
        page.start("a")
        page.log("a", 1)
        assert page.live.flush() == 0
        for thread in wire.threads:
            thread.join()
        assert len(results.runs(server.uri, page.name)) == (1 if late is None else 2)
        page.live.close("a", "FINISHED", lambda: whole("a"))
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    assert wire.lost == 1
    assert page.said == [], "the server was there all the time"
    assert results.runs(server.uri, page.name)["status"].tolist() == ["FINISHED"]
    assert page.steps("a") == [1, 2, 3, 4]
    wire.http.shutdown()


def test_a_server_that_hangs_holds_up_nobody_and_is_noticed(server, tmp_path, monkeypatch):
    """SIGSTOP: it accepts and never answers. Noticed; the driver's calls stay at microseconds."""
    monkeypatch.setattr(checks, "REQUEST_SECONDS", 2)
    with Page(Tracker(server.uri, artifacts=tmp_path), tmp_path, "hangs") as page:
        page.live.open({})
        page.start("a")
        assert page.live.flush() == 0
        server.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            page.log("a", *range(1, 2001))
            assert time.monotonic() - started < 2 * PATIENCE
            while not page.said:
                assert time.monotonic() - started < 15 * PATIENCE
                time.sleep(0.1)
            assert "has been away since" in page.said[0]
            assert "it does not answer in time" in page.said[0]
            assert page.live.flush(limit=0.5) == 1
        finally:
            server.signal(signal.SIGCONT)
        page.live.close("a", "FINISHED", lambda: whole("a", 2000))
        page.live.end("FINISHED")
        assert page.live.finish() == 0
    assert [text.partition(" after")[0].rpartition(" is ")[2] for text in page.said[1:]] == ["back"]
    points = mlflow.MlflowClient(server.uri).get_metric_history(page.runs()["run_id"]["a"], "train/loss")
    assert sorted((p.step, p.value) for p in points) == [(step, step / 7) for step in range(1, 2001)]


def test_what_is_left_at_the_end_is_said(server, tmp_path, monkeypatch):
    """The server goes for good: the end takes no longer than PFORCE_FLUSH_SECONDS."""
    monkeypatch.setenv("PFORCE_FLUSH_SECONDS", "1")
    wire = Wire(server.port, lost=1)
    with Page(Tracker(wire.uri, artifacts=tmp_path), tmp_path, "left") as page:
        page.live.open({})
        wire.http.shutdown()
        wire.http.server_close()
        page.start("a")
        page.log("a", 1)
        page.live.close("a", "FINISHED", lambda: whole("a"))
        started = time.monotonic()
        assert page.live.finish() == 1
        assert time.monotonic() - started < 4 * PATIENCE
    assert page.said[-1].startswith("1 run of")
    assert lives.CATCH_UP in page.said[-1]
    assert not [each for each in threading.enumerate() if each is page.live.thread and each.is_alive()]
