"""What work cost, as a value. Oracle: sums by hand, and the bytes of records."""

from __future__ import annotations

import math

import pytest

from pforce.metrics.names import COSTS, THROUGHPUT
from pforce.records.cost import Cost

RECORDED = [
    {},
    {"seconds": 1.5, "device_seconds": 3.0},
    {"seconds": 2.0, "device_seconds": 2.0, "images": 64.0, "passes": 1536.0},
    {
        "seconds": 9.0, "device_seconds": 18.0, "images": 640.0, "trunk_seconds": 4.0, "trunk_device_seconds": 8.0,
        "trunk_images": 320.0,
    },
]  # fmt: skip
"""What records of a training, a measurement, a drawing and a branch hold."""


@pytest.mark.parametrize("plain", RECORDED)
def test_what_a_record_holds_is_read_and_written_as_it_was(plain: dict[str, float]) -> None:
    assert Cost.of(plain).plain() == plain
    assert Cost.of({**plain, "joules": 7.0}).plain() == plain, "an entry of another version is passed over"


def test_what_no_record_says_stays_unknown() -> None:
    both = Cost.total(RECORDED[:3])
    assert both == Cost(3.5, 5.0, images=64.0, passes=1536.0)
    assert both.trunk_seconds is None
    assert Cost.total([]) == Cost()
    assert Cost(seconds=math.nan, images=3.0).plain() == {"images": 3.0}


def test_metrics_of_a_row_and_of_its_parts() -> None:
    training, evaluation = Cost.of(RECORDED[3]), Cost.total(RECORDED[1:3])
    assert (training + evaluation).metrics() == {"cost/seconds": 12.5, "cost/device_hours": 23 / 3600}
    assert evaluation.evaluation_metrics() == {"cost/evaluation_seconds": 3.5}
    assert training.training_metrics(640.0) == {
        "cost/training_seconds": 9.0, THROUGHPUT: 640 / 9, "cost/trunk_seconds": 4.0, "cost/trunk_images": 320.0,
        "cost/trunk_device_hours": 8 / 3600,
    }  # fmt: skip
    assert {*training.training_metrics(1.0), *evaluation.evaluation_metrics(), *training.metrics()} <= {
        *COSTS, THROUGHPUT
    }  # fmt: skip


def test_a_training_of_no_time_has_no_speed() -> None:
    assert Cost().training_metrics(64.0) == Cost(seconds=0.0).training_metrics(64.0) == {}
    assert Cost().metrics() == {"cost/seconds": 0.0, "cost/device_hours": 0.0}
    assert Cost().evaluation_metrics() == {"cost/evaluation_seconds": 0.0}
