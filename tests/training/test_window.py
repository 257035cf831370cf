"""What a training's process uses, at the points of its curve. Oracles: a clock that the test moves, and the system."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from pforce.training import window
from pforce.training.curve import read_curve, write_segment
from pforce.training.window import KIBIBYTES, Record, Usage


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.wall = self.cpu = 100.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu


def test_shares_are_of_the_time_since_the_last_point(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(window, "time", clock)
    usage = Usage()
    for _ in range(3):
        with usage.waiting():
            clock.wall += 2
        clock.wall += 6
        clock.cpu += 12
    first = usage.close(torch.device("cpu"))
    assert (first.data_wait, first.cores) == (6 / 24, 36 / 24)
    clock.wall += 10
    clock.cpu += 5
    second = usage.close(torch.device("cpu"))
    assert (second.data_wait, second.cores) == (0.0, 0.5)


def test_memory_is_the_largest_of_the_process_and_none_of_a_gpu_on_a_cpu():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTES
    used = Usage().close(torch.device("cpu"))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTES
    assert before <= used.peak_memory <= after
    assert used.peak_device_memory == 0


def test_points_of_earlier_commits_are_read(tmp_path: Path):
    """They do not say what was used."""
    old = Record(1, 16, 1.0, 1.0, 0.0, 1.0, 0.1, 10.0)
    path = write_segment(tmp_path, [old])
    assert path is not None
    assert read_curve(tmp_path) == [old]
    assert (old.data_wait, old.cores, old.peak_memory) == (0.0, 0.0, 0.0)
