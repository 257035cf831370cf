"""Trials of several workers through Ray Train. A real cluster, real gloo; oracle: the same trial by one worker."""

from __future__ import annotations

import io
import threading
import time

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, make_console
from pforce.base.errors import ConfigError, FieldError
from pforce.executors.support import seats
from pforce.executors.support.placement import Node, place
from pforce.orchestration.axes import Axis
from pforce.orchestration.launch import execute
from pforce.tracking import Tracker
from tests.orchestration.conftest import make_plan, small_sweep

pytestmark = pytest.mark.timeout(600)
STEPS = 50


def curve(plan, run_id: str) -> dict[int, float]:
    tracker = Tracker(plan.options.uri, artifacts=plan.options.root)
    return {point.step: point.value for point in tracker.client.get_metric_history(run_id, "train/loss")}


def test_two_workers_give_the_curve_and_the_numbers_of_one(ray_cluster, tmp_path, console):
    """1e-4 over 50 steps; one group serves all three cells, the one that diverges fails alone."""
    sweep = small_sweep(Axis("optimizer.learning_rate", (3e-3, 1e20, 1e-3)), steps=STEPS)
    two = make_plan(sweep, tmp_path / "two", workers=2)
    assert execute(two, console, "groups") == SOME_FAILED
    one = make_plan(sweep, tmp_path / "one", cpus_per_trial=1)
    assert execute(one, console, "local") == SOME_FAILED

    frames = [results.runs(plan.options.uri).set_index("optimizer.learning_rate") for plan in (two, one)]
    for frame in frames:
        assert frame["status"].to_dict() == {3e-3: "FINISHED", 1e20: "FAILED", 1e-3: "FINISHED"}
        assert frame["reason"][1e20] == "diverged"
    for rate in (3e-3, 1e-3):
        points = [curve(plan, frame["run_id"][rate]) for plan, frame in zip((two, one), frames, strict=True)]
        assert list(points[0]) == list(points[1]) == [16 * step for step in range(1, STEPS + 1)]
        assert list(points[0].values()) == pytest.approx(list(points[1].values()), abs=1e-4)
        for metric in ("val/loss", "fd/openmoji", "difficulty/pearson_t0.60"):
            assert frames[0][metric][rate] == pytest.approx(frames[1][metric][rate], rel=1e-3), metric
    used = [Tracker(plan.options.uri, artifacts=plan.options.root).client.get_run(frame["run_id"][1e-3]).data.metrics
            for plan, frame in zip((two, one), frames, strict=True)]  # fmt: skip
    both = [used[0][f"system/worker_{rank}/peak_memory_gib"] for rank in (0, 1)]
    assert used[0]["system/node_0/peak_memory_gib"] == pytest.approx(sum(both), rel=1e-6), "both on one node"
    assert not any(name.startswith(("system/worker", "system/node")) for name in used[1])
    assert frames[0]["cost/device_hours"][1e-3] > 1.9 * frames[0]["cost/seconds"][1e-3] / 3600
    again = make_plan(sweep, tmp_path / "two", workers=1)
    assert (len(again.missing), len(again.diverged)) == (0, 1), "the number of workers is no part of a cell's identity"


def test_a_group_without_room_waits_and_says_so(ray_cluster, tmp_path, monkeypatch):
    """Another job holds the cluster's cores; once they are free it begins."""
    monkeypatch.setattr(seats, "WAITING_SECONDS", 1.0)
    console = make_console(file=io.StringIO(), width=200)
    other = placement_group([{"CPU": 2}])
    ray.get(other.ready())
    said = "waiting for room for 2 workers of 1 core"

    def free() -> None:
        while said not in console.file.getvalue():
            time.sleep(0.1)
        remove_placement_group(other)

    thread = threading.Thread(target=free, daemon=True)
    thread.start()
    plan = make_plan(small_sweep(), tmp_path, workers=2)
    assert execute(plan, console, "groups") == DONE
    assert "the cluster has 0 cores" in console.file.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 3}, r"--workers 3: must divide data.streams = 4: one of 1, 2, 4"),
        ({"workers": 8}, r"--workers 8: must divide data.streams = 4"),
        ({"workers": 0}, r"workers = 0: must be ≥ 1"),
        ({"workers": 2, "collective_timeout": 0}, r"collective_timeout = 0: must be > 0 seconds"),
        ({"sharding": "fsdp"}, r"sharding = 'fsdp'.*--workers 2 or more"),
        ({"spread": True}, r"spread = True.*--workers 2 or more"),
        ({"retries": -1}, r"retries = -1"),
    ],
)
def test_workers_that_do_not_fit_are_refused_before_anything_starts(tmp_path, options, message):
    with pytest.raises((ConfigError, FieldError), match=message):
        make_plan(small_sweep(), tmp_path, **options)
    assert not (tmp_path / "trainings").exists()


def test_a_share_that_accumulation_does_not_divide(tmp_path):
    sweep = small_sweep(Axis("training.accumulation", (1, 8)))
    with pytest.raises(ConfigError, match=r"accumulation = 8: must divide a worker's share of the batch, 16 / 4 = 4"):
        make_plan(sweep, tmp_path, workers=4)


LAPTOP, GPUS = Node(2, 0), Node(16, 4)


@pytest.mark.parametrize(
    ("cells", "nodes", "wanted", "expected"),
    [
        (4, [LAPTOP], {"workers": 2}, (1, 1, 0)),  # one trial at a time, a core each
        (1, [Node(8, 0)], {"workers": 2}, (1, 4, 0)),
        (4, [GPUS], {"workers": 2}, (2, 4, 1)),
        (4, [GPUS, GPUS], {"workers": 8}, (1, 4, 1)),  # a trial may lie on several nodes
        (1, [LAPTOP, LAPTOP], {"workers": 2, "spread": True}, (1, 2, 0)),
        (9, [LAPTOP, LAPTOP, LAPTOP], {"workers": 2, "spread": True}, (3, 1, 0)),
        (9, [Node(9, 0), Node(1, 0)], {"workers": 2, "spread": True}, (1, 1, 0)),
    ],
)
def test_groups_are_placed_all_or_not(cells, nodes, wanted, expected):
    p = place(cells, nodes=nodes, cpus=None, gpus=None, **wanted)
    assert (p.concurrent, p.cpus, p.gpus) == expected
    assert p.devices == (p.gpus or p.cpus) * wanted["workers"]


def test_groups_that_can_never_be_placed_are_refused():
    with pytest.raises(ConfigError, match=r"--workers 4: the cluster has no room for so many at once.*2 cores"):
        place(1, nodes=[LAPTOP], cpus=None, gpus=None, workers=4)
    with pytest.raises(ConfigError, match="on different nodes"):
        place(1, nodes=[GPUS], cpus=None, gpus=None, workers=2, spread=True)
