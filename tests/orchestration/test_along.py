"""Trainings that are measured along the way, beside or in between. Oracles: the other way, bit for bit; the order of
reports; straight lines worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from pforce.base.console import DONE, make_console
from pforce.base.errors import FieldError
from pforce.commands.sweep_arguments import snapshots_of
from pforce.config import with_fields
from pforce.metrics.names import CostName
from pforce.orchestration.axes import Axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import execute
from pforce.orchestration.report import Source, section_of
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import Comparison, sweep_frame, sweep_summary
from pforce.results import Row
from pforce.results.growth import along, hours_to_reach
from pforce.training import TrainingConfig
from tests.faults.noticed import LINE
from tests.orchestration.conftest import make_plan
from tests.training.conftest import tiny

STEPS, SNAPSHOTS = 60, (16, 160, 480)
GROWTH = "Quality against images seen and device-hours"


def swept(folder: Path, executor: str) -> tuple[pd.DataFrame, Path]:
    """A sweep of one training, measured at four numbers of images seen."""
    base = with_fields(tiny(STEPS), {"training.snapshots": SNAPSHOTS})
    plan = make_plan(Sweep("along", base, (Axis("timesteps.sigma", (0.2,)),)), folder, cpus_per_trial=1)
    keep_sweep(plan)
    assert execute(plan, make_console(quiet=True), executor) == DONE
    summary = sweep_summary(plan, sweep_frame(plan), comparison=Comparison(reach=1.5e9))
    assert len(summary.section.figures) == 2
    captions = [caption for _, caption in section_of("along", Source(plan.options.place, print)).figures]
    assert GROWTH in captions, "in the page that is made from the storage alone, too"
    return summary.report.table, folder


@pytest.mark.process
def test_measured_beside_a_training_is_measured_as_in_between(tmp_path):
    """The training runs through: one attempt has all of its steps, and another process measures the snapshots."""
    beside, folder = swept(tmp_path / "beside", "processes")
    between, other = swept(tmp_path / "between", "local")
    whole = ["images_seen", "val loss", "fd/openmoji", "R(0.2)", "images seen"]
    pd.testing.assert_frame_equal(beside[whole], between[whole], check_exact=True)
    assert beside["images_seen"].astype(int).tolist() == [*SNAPSHOTS, 16 * STEPS]
    reach = next(name for name in beside if name.startswith("device-hours to fd/openmoji ≤"))
    assert (beside[reach] > 0).all()
    steps = [[int(each.replace(",", "")) // 16 for each in LINE.findall(log.read_text())]
             for log in sorted(folder.glob("trainings/*/attempts/*.log"))]  # fmt: skip
    assert sorted(map(len, steps)) == [0] * len(SNAPSHOTS) + [STEPS]
    several = [log for log in other.glob("trainings/*/attempts/*.log") if LINE.search(log.read_text())]
    assert len(several) == 1 + len(SNAPSHOTS), "in between, each goes on from the last"


def rows(*labels: dict[str, str]) -> list[Row]:
    return [Row(each, [f"{n}"]) for n, each in enumerate(labels)]


def frame(values: list[tuple[float, float]], seeds: list[int]) -> pd.DataFrame:
    """Runs with (hours, distance) each; a half of a run's seconds is its training."""
    return pd.DataFrame({
        "fingerprint": [str(n) for n in range(len(values))], "status": "FINISHED", "start_time": 0.0, "seed": seeds,
        CostName.IMAGES_SEEN: [100.0 * (n + 1) for n in range(len(values))],
        CostName.DEVICE_HOURS: [2 * hours for hours, _ in values], CostName.SECONDS: 2.0,
        CostName.TRAINING_SECONDS: 1.0, "fd/openmoji": [distance for _, distance in values],
    })  # fmt: skip


def test_device_hours_to_a_distance_lie_between_two_measurements():
    labels = [{"m": "0", "images_seen": str(100 * (n + 1))} for n in range(3)]
    measured = frame([(1, 30), (2, 20), (4, 10)], [0, 0, 0])
    for wanted, hours in ((15, 3), (20, 2), (40, 1), (10, 4)):
        assert hours_to_reach(measured, rows(*labels), "fd/openmoji", wanted) == {"m 0": pytest.approx(hours)}
    assert math.isnan(hours_to_reach(measured, rows(*labels), "fd/openmoji", 9)["m 0"])
    assert hours_to_reach(measured, rows(*[{"m": "0"}] * 3), "fd/openmoji", 9) == {}


def test_snapshots_by_a_factor_and_by_a_list():
    training = TrainingConfig(images=6400, batch=64)
    assert snapshots_of(["2x"], training) == (128, 192, 384, 768, 1600, 3200)
    assert snapshots_of(["10x"], training) == (640,)
    assert snapshots_of(["640", "64"], training) == (64, 640)
    for wrong in (["1x"], ["2y"], ["6400"], ["100"], ["2x", "64"], ["-64"], ["0"]):
        with pytest.raises(FieldError, match="measure_every"):
            snapshots_of(wrong, training)


def test_what_a_file_says_of_images_seen_need_not_be_a_number():
    assert along(rows({"m": "0", "images_seen": "many"})) == {}
