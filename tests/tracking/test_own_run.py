"""The own run of a sweep while its page is live. Oracle: MLflow's own client."""

from __future__ import annotations

import pytest

from pforce.tracking import Tags, Tracker, View, changes, default_uri
from tests.tracking.pages import Page, until, whole

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    return Tracker(default_uri(tmp_path), artifacts=tmp_path / "artifacts")


def test_a_sweep_without_a_table_ends_as_it_is(tracker, tmp_path):
    """No cell has ended, or its table cannot be made: its end is shown at once, and nothing is said to be missing."""

    def broken(status: str) -> View:
        raise ValueError("no table")

    for own, said in ((lambda status: None, []), (broken, ["no table"])):
        with Page(tracker, tmp_path, name=f"own-{len(said)}", own=own) as page:
            page.live.open({})
            page.live.end("KILLED")
            assert page.live.finish() == 0
        assert [line.rpartition(": ")[2] for line in page.said] == said
        (experiment,) = tracker.client.search_experiments(filter_string=f"name = 'own-{len(said)}'")
        (run,) = tracker.client.search_runs([experiment.experiment_id])
        assert run.info.status == "KILLED"


def test_the_own_run_is_left_alone_once_it_was_deleted_or_another_driver_has_ended_it(tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "SUM_SECONDS", 0.0)
    monkeypatch.setattr(changes, "SUM_SHARE", 0.0)
    made: list[str] = []

    def own(status: str) -> View:
        made.append(status)
        return View("grid", {Tags.BEST: f"{len(made)}. {status}"}, status=status)

    with Page(tracker, tmp_path, own=own) as page:
        page.live.open({})
        for cell in "abc":
            page.start(cell)
        page.live.close("a", "FINISHED", lambda: whole("a"))
        until(lambda: made == ["RUNNING"])
        assert page.live.flush() == 0
        run_id = page.runs()["parent"].iloc[0]
        assert tracker.client.get_run(run_id).data.tags[Tags.BEST] == "1. RUNNING"
        tracker.client.set_terminated(run_id, "FINISHED")  # by another driver
        page.live.close("b", "FINISHED", lambda: whole("b"))
        until(lambda: len(made) == 2)
        assert page.live.flush() == 0
        assert tracker.client.get_run(run_id).data.tags[Tags.BEST] == "1. RUNNING"
        tracker.client.update_run(run_id, status="RUNNING")
        tracker.client.delete_run(run_id)
        page.live.close("c", "FINISHED", lambda: whole("c"))
        assert page.live.flush() == 0
    assert set(page.runs()["status"]) == {"FINISHED"}
    assert not [line for line in page.said if "away" in line]
