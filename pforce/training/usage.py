"""The use of CPU, memory, GPU and time by the workers of a training."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

KIBIBYTES = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit in which the system gives a process's largest memory."""


class Used(NamedTuple):
    """What a worker's process used since the last point; fields as in `Record`."""

    data_wait: float
    cores: float
    peak_memory: float
    peak_device_memory: float
    device_use: float


class Usage:
    """The use of CPU, memory and time since it was made or last closed. It costs two system calls per point."""

    def __init__(self) -> None:
        self.waited = 0.0
        """Seconds spent waiting for data."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def close(self, device: torch.device) -> Used:
        """The use since the last call, and begin anew."""
        wall, cpu = time.perf_counter(), time.process_time()
        seconds = max(wall - self._wall, 1e-9)
        memory = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTES)
        own = float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0
        used = Used(min(1.0, self.waited / seconds), (cpu - self._cpu) / seconds, memory, own, _device_use(device))
        self.waited, self._wall, self._cpu = 0.0, wall, cpu
        return used


def _device_use(device: torch.device) -> float:
    """Share of the last moments in which a GPU was computing, as its driver says (NVML); 0 where it does not."""
    if device.type != "cuda":
        return 0.0
    try:
        return torch.cuda.utilization(device) / 100
    except (ImportError, RuntimeError, OSError):  # no package or library of NVML, or a driver that does not answer
        return 0.0


def by_node(used: Sequence[tuple[str, Used]]) -> list[list[float]] | None:
    """What each worker used, after the number of its node, which are counted from 0 in the order of ranks; None for an
    empty list, which all workers but the first have.

    Args:
        used: host and use of each worker, by rank.
    """
    nodes = {host: number for number, host in enumerate(dict.fromkeys(host for host, _ in used))}
    return [[float(nodes[host]), *each] for host, each in used] or None
