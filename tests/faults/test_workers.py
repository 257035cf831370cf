"""Eight workers on one storage, disturbed; `workers.py` runs any number of rounds."""

from __future__ import annotations

import random

import pytest

from tests.faults.drills import SEED
from tests.faults.workers import round_of, undisturbed

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]


def test_eight_workers_end_in_the_table_of_one(openmoji_folder, tmp_path):
    """Started at odd moments; two killed, two told to end, two stopped and continued: each part has one record, and
    little is done twice."""
    ended = round_of(tmp_path / "round", undisturbed(tmp_path), random.Random(f"workers-{SEED}"))
    assert ended.is_good, ended
    assert ended.steps == 960
