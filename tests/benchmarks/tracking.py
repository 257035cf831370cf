"""What recording costs: 300 runs of 50 points of 8 metrics into a sqlite database, and reading them back.

Two ways in turn: `Tracker` writes at once, as a driver without `Delivery` would; `Delivery` appends, and a thread
writes. Printed: milliseconds of each call as the driver sees it (median, range, n), and seconds in all. A third
number is the time until everything is in the database.

    python -m tests.benchmarks.tracking [--runs 300]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pforce import results
from pforce.tracking import Delivery, RunSpec, Tracker, default_uri

POINTS = 50
NAMES = tuple(f"train/m{number}" for number in range(8))
PARAMS = {f"group.field{number}": number for number in range(40)}


def spec(number: int) -> RunSpec:
    return RunSpec(f"run {number}", f"f{number}", PARAMS, {"version.pforce": "1"})


def values(step: int) -> dict[str, float]:
    return dict.fromkeys(NAMES, step / 7)


class Calls:
    """Times calls one by one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, function: Callable[[], object]) -> None:
        started = time.perf_counter()
        function()
        self.seconds.append(time.perf_counter() - started)

    def __str__(self) -> str:
        milliseconds = 1000 * np.array(self.seconds)
        low, high = milliseconds.min(), milliseconds.max()
        return (
            f"median {np.median(milliseconds):.3f} ms a call, range {low:.3f} to {high:.1f}, "
            f"99 % below {np.quantile(milliseconds, 0.99):.2f}, n = {len(milliseconds):,}; "
            f"{milliseconds.sum() / 1000:.1f} s in all"
        )


def synchronous(tracker: Tracker, numbers: range) -> Calls:
    calls = Calls()
    sweep = tracker.open_sweep("synchronous", "synchronous", {})
    open_runs: dict[int, str] = {}
    for number in numbers:
        calls(lambda n=number: open_runs.update({n: tracker.open_trial(sweep, spec(n))}))
    for step in range(POINTS):
        for number in numbers:
            calls(lambda n=number, s=step: tracker.log(open_runs[n], values(s), step=s))
    for number in numbers:
        calls(lambda n=number: tracker.close(open_runs[n], "FINISHED"))
    return calls


def delivered(tracker: Tracker, folder: Path, numbers: range) -> tuple[Calls, float, int]:
    """The driver's calls, seconds until all is delivered, and the bytes of the file."""
    calls = Calls()
    started = time.perf_counter()
    with Delivery(tracker, folder / "spool", "delivered", print) as delivery:
        delivery.open_sweep("delivered", {})
        for number in numbers:
            calls(lambda n=number: delivery.open_trial(spec(n)))
        for step in range(POINTS):
            for number in numbers:
                calls(lambda n=number, s=step: delivery.log(f"f{n}", values(s), step=s))
        for number in numbers:
            calls(lambda n=number: delivery.close(f"f{n}", "FINISHED"))
        delivery.close_sweep("FINISHED")
        size = delivery.spool.path.stat().st_size
        assert delivery.finish() == 0
    return calls, time.perf_counter() - started, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=300)
    numbers = range(parser.parse_args().runs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tracker = Tracker(default_uri(folder), artifacts=folder / "artifacts")
        calls, seconds, size = delivered(tracker, folder, numbers)
        print(f"{len(numbers)} runs, {POINTS} points of {len(NAMES)} metrics, {len(PARAMS)} parameters")
        print(f"Delivery, the driver's calls: {calls}")
        print(f"Delivery, until all is in the database: {seconds:.1f} s; the file: {size / 1e6:.1f} MB")
        print(f"Tracker, written at once: {synchronous(tracker, numbers)}")
        for sweep in ("delivered", "synchronous"):
            timed = Calls()
            for _ in range(5):
                timed(lambda s=sweep: results.runs(tracker.uri, s))
            frame = results.runs(tracker.uri, sweep)
            assert len(frame) == len(numbers)
            print(f"results.runs() over the {len(frame)} runs of `{sweep}`: {timed}")


if __name__ == "__main__":
    main()
