"""A server that several people use: what one of them reads there. Oracle: the requests, as they go over the wire."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pforce import cli
from pforce.base.console import DONE, make_console
from pforce.commands.mirror import mirror_storage
from pforce.orchestration.axes import Axis
from pforce.orchestration.find import find_source
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import show_finished
from pforce.orchestration.sweep_report import sweep_frame
from pforce.records.ledger import Ledger
from pforce.storage import Storage
from pforce.storage.identity import identity_of
from pforce.tracking import Mirror, Tags, Tracker
from pforce.tracking.charts import addresses
from pforce.tracking.mirror import MOST_LOOKED_FOR
from pforce.tracking.view import key_of
from pforce.trial.source import SourceError
from tests.orchestration.conftest import make_plan, small_sweep
from tests.results.conftest import known
from tests.tracking.cells import keyed
from tests.tracking.wire import Wire
from tests.tracking.writer import Writer

pytestmark = pytest.mark.timeout(300)
SWEEP = small_sweep(Axis("timesteps.m", (0.5, 0.7)), name="crowd")


@pytest.fixture
def crowded(server, tmp_path, monkeypatch) -> tuple[Wire, Path]:
    """A server with two people's pages of one sweep's name, a colleague's with 300 runs, and one of an earlier version
    that nobody owns; and a storage with two cells, one of them from a colleague's record."""
    theirs = Mirror(Tracker(server.backend, artifacts=tmp_path), Storage.open(tmp_path / "theirs")).page("crowd")
    theirs.show(keyed(theirs, *(f"{number:032x}" for number in range(300))))
    Writer(server.uri).open_sweep("crowd (ada)", "of somebody else", {})
    monkeypatch.setenv("LOGNAME", "ada")
    wire = Wire(server.port, lost=1)
    plan = make_plan(SWEEP, tmp_path / "mine", tracking_uri=wire.uri)
    keep_sweep(plan)
    for item, who in zip(plan.work, ("ada", "grace"), strict=True):
        known(item, {"fd/openmoji": 5.0, "val/loss": 0.2}, plan.ledger, user=who)
    return wire, tmp_path / "mine"


def test_nothing_pages_through_other_peoples_runs(crowded, capsys):
    """Oracle: the experiments that each search for runs names, as it went over the wire."""
    wire, storage = crowded
    place, tracker = Storage.open(storage), Tracker(wire.uri, artifacts=storage)
    assert mirror_storage(place, tracker, Ledger(place, print), make_console(quiet=True)) == DONE
    client = tracker.client
    earlier = client.get_experiment_by_name("crowd (ada)").experiment_id
    (own,) = client.search_experiments(filter_string=f"tags.`{Tags.KEY}` = '{key_of(identity_of(place), 'crowd')}'")
    assert own.name.startswith("crowd (ada)-")
    runs = client.search_runs([own.experiment_id], f"tags.`{Tags.KIND}` = 'trial'")
    assert sorted(run.data.tags["mlflow.user"] for run in runs) == ["ada", "grace"], "a colleague's record names them"
    where = ("--storage", str(storage), "--tracking-uri", wire.uri)
    plan = make_plan(SWEEP, storage, tracking_uri=wire.uri)
    show_finished(plan, print)
    assert len(sweep_frame(plan)) == 2
    assert len(addresses(tracker, key_of(identity_of(place), "crowd"), plan.identity)) > 0
    for words in (("runs",), ("runs", "crowd"), ("cost", "--by", "user")):
        assert cli._run([*words, *where]) == 0
    told = capsys.readouterr().out
    for model in ("best:crowd", runs[0].info.run_id):
        with pytest.raises(SourceError, match="give the --storage of its sweep"):
            find_source(model, storage=storage, tracking_uri=wire.uri)
    searches = [json.loads(body) for path, body in wire.asked if path.endswith("/runs/search")]
    others = [each for each in searches if each["experiment_ids"] != [own.experiment_id]]
    assert len(searches) > 10
    # Whether the page of an earlier version is ours is asked by the digests that are.
    assert {tuple(each["experiment_ids"]) for each in others} == {(earlier,)}
    assert len(others) <= MOST_LOOKED_FOR
    assert all(each["max_results"] == 1 or re.search("(sweep|fingerprint)` = '", each["filter"]) for each in others)
    assert "302" not in told
    assert cli._run(["cost", *where, "--everyone"]) == 0
    assert "302" in capsys.readouterr().out
    wire.http.shutdown()
