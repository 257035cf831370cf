"""A sweep's page in the tests, and what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pforce import results
from pforce.storage import Storage
from pforce.tracking import Live, Mirror, Point, Tags, Tracker, View
from tests.support.clock import PATIENCE


class Page:
    """A sweep's page, and what it says."""

    def __init__(self, tracker: Tracker, folder: Path, name: str = "grid", **options: Any) -> None:
        self.said: list[str] = []
        self.tracker, self.name = tracker, name
        mirror = Mirror(tracker, Storage.open(folder))
        self.live = Live(mirror, name, "identity", self.said.append, **options)

    def __enter__(self) -> Page:
        self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(*error)

    def start(self, cell: str, **options: Any) -> None:
        self.live.start(cell, f"cell {cell}", {"timesteps.m": "0.5"}, {"device": "cpu"}, **options)

    def log(self, cell: str, *steps: int) -> None:
        for step in steps:
            self.live.log(cell, point(step))

    def runs(self) -> Any:
        return results.runs(self.tracker.uri, self.name).set_index("fingerprint")

    def steps(self, cell: str) -> list[int]:
        frame = results.runs(self.tracker.uri, self.name)
        if not len(frame):
            return []
        history = self.tracker.client.get_metric_history(self.runs()["run_id"][cell], "train/loss")
        return [p.step for p in sorted(history, key=lambda p: (p.timestamp, p.step))]


def point(step: int) -> Point:
    return Point(step, 1_700_000_000_000 + step, {"train/loss": step / 7})


def whole(cell: str, steps: int = 4) -> View:
    """What records say of a cell."""
    tags = {Tags.KIND: "trial", Tags.FINGERPRINT: cell, "device": "cpu", Tags.TRAINING: "t"}
    points = [point(step) for step in range(1, steps + 1)]
    return View(f"cell {cell}", tags, {"timesteps.m": "0.5"}, {"val/loss": 0.5}, steps, "FINISHED", 1, 2,
                points=lambda: points)  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
