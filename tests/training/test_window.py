"""What a training's process uses, at the points of its curve. Oracles: a clock that the test moves, and the system."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from pforce.training import usage as used_by
from pforce.training.curve import read_curve, write_segment
from pforce.training.flops import TERA, peak_flops
from pforce.training.usage import KIBIBYTES, Usage, Used, by_node
from pforce.training.window import Record


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
    monkeypatch.setattr(used_by, "time", clock)
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
    assert (old.data_wait, old.cores, old.peak_memory, old.workers) == (0.0, 0.0, 0.0, None)


@pytest.mark.parametrize(("field", "value"), [
    ("loss", "1"), ("mse", None), ("workers", 3), ("workers", [[0.0]]), ("workers", [["a"] * 6]),
])  # fmt: skip
def test_a_point_that_holds_no_numbers_is_reported_and_left_out(tmp_path: Path, field, value):
    good = Record(1, 16, 1.0, 1.0, 0.0, 1.0, 0.1, 10.0, workers=[[0.0] * 6])
    write_segment(tmp_path, [good])
    write_segment(tmp_path, [good._replace(step=2, images_seen=32, **{field: value})])
    said: list[str] = []
    assert read_curve(tmp_path, say=said.append) == [good]
    assert field in said[0]


def test_workers_are_listed_by_rank_with_the_number_of_their_node():
    used = [Used(0.1 * rank, 1.0, 2.0, 0.0, 0.0) for rank in range(3)]
    rows = by_node([("b", used[0]), ("a", used[1]), ("b", used[2])])
    assert rows == [[0.0, *used[0]], [1.0, *used[1]], [0.0, *used[2]]]
    assert by_node([]) is None


def test_peaks_are_found_by_the_names_that_drivers_give():
    names = {
        "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A10G": 70,
        "NVIDIA A10": 125, "NVIDIA L4": 121, "NVIDIA GeForce RTX 4090": 165.2,
    }  # fmt: skip
    for name, peak in names.items():
        assert peak_flops(name, bfloat16=True, tf32=True) == peak * TERA
    assert peak_flops("NVIDIA A100-SXM4-80GB", bfloat16=False, tf32=False) == 19.5 * TERA
    assert peak_flops("NVIDIA L4000", bfloat16=True, tf32=True) is None
