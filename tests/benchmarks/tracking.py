"""What MLflow costs: 2,000 finished cells shown in a sqlite database, a sweep's page while 300 trials run, reading.

Of the page: milliseconds of each call as the driver sees it (median, range, n), which never waits for MLflow, and the
seconds until everything is in the database. Of the mirror: runs a second into a new database, in its tables and through
MLflow's interface, and when everything is there already.

    python -m tests.benchmarks.tracking [--cells 2000] [--runs 300]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pforce import results
from pforce.storage import Storage
from pforce.tracking import Live, Mirror, Point, Tags, Tracker, View, default_uri

POINTS = 50
NAMES = tuple(f"train/m{number}" for number in range(8))
PARAMS = {f"group.field{number}": str(number) for number in range(60)}
NUMBERS, CURVE = 130, 10
"""Numbers of a finished cell, and points of its curve."""


def view(number: int) -> View:
    """A finished cell."""
    now = 1_700_000_000_000 + number
    tags = {Tags.KIND: "trial", Tags.FINGERPRINT: f"{number:032x}", **{f"version.p{n}": "1" for n in range(8)}}
    return View(
        f"cell {number}", tags, PARAMS, {f"m/{n}": number / (n + 1) for n in range(NUMBERS)}, 640, "FINISHED", now,
        now + 5, points=lambda: [Point(64 * k, now + k, {"train/loss": number + 1 / k}) for k in range(1, CURVE + 1)],
    )  # fmt: skip


class Calls:
    """Times calls one by one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, call: Callable[[], object]) -> None:
        started = time.perf_counter()
        call()
        self.seconds.append(time.perf_counter() - started)

    def __str__(self) -> str:
        ms = 1000 * np.array(self.seconds)
        return f"{np.median(ms):.3f} ms ({ms.min():.3f} … {ms.max():.1f}, n = {len(ms):,}), {ms.sum() / 1000:.2f} s"


def mirrored(folder: Path, cells: int, *, api: bool = False) -> list[float]:
    """Seconds to show finished cells in a new database, and again."""
    mirror = Mirror(Tracker(default_uri(folder), artifacts=folder / "artifacts"), Storage.open(folder))
    if api:
        mirror.database = None
    page = mirror.page("grid")
    views = {page.key(f"{number:032x}"): view(number) for number in range(cells)}
    seconds = []
    for expected in ("made", "there"):
        started = time.perf_counter()
        shown = page.show(views)
        seconds.append(time.perf_counter() - started)
        assert getattr(shown, expected) == cells
    return seconds


def live(folder: Path, runs: int) -> tuple[Calls, float]:
    """The driver's calls of trials that all report, and seconds until everything is shown."""
    mirror, calls = Mirror(Tracker(default_uri(folder), artifacts=folder / "artifacts"), Storage.open(folder)), Calls()
    with Live(mirror, "grid", "identity", print) as page:
        page.open({})
        started = time.perf_counter()
        for number in range(runs):
            calls(lambda n=number: page.start(f"{n:032x}", f"cell {n}", PARAMS, {}))
            for step in range(POINTS):
                point = Point(step, step, dict.fromkeys(NAMES, step / 7))
                calls(lambda n=number, p=point: page.log(f"{n:032x}", p))
            calls(lambda n=number: page.close(f"{n:032x}", "FINISHED"))
        page.end("FINISHED")
        assert page.finish() == 0
        return calls, time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for api, cells in ((False, given.cells), (True, max(1, given.cells // 10))):
            first, again = mirrored(folder / f"mirror-{api}", cells, api=api)
            way = "through MLflow's interface" if api else "in MLflow's tables"
            print(f"{cells:,} finished cells, {way}: {first:.1f} s, {cells / first:.0f} a second; again {again:.2f} s")
        calls, seconds = live(folder / "live", given.runs)
        print(f"A page under way, the driver's calls: {calls}")
        print(f"Until {given.runs} runs of {POINTS} points of {len(NAMES)} metrics are shown: {seconds:.1f} s")
        reading = Calls()
        for _ in range(5):
            reading(lambda: results.runs(default_uri(folder / "live")))
        print(f"Reading those runs: {reading}")


if __name__ == "__main__":
    main()
