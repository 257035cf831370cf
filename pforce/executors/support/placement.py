"""Number of simultaneous tasks and their resources, computed from the cluster so that nothing waits for ever."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pforce.base.errors import ConfigError
from pforce.base.machine import usable_cores
from pforce.base.words import counted


@dataclass(frozen=True)
class Placement:
    """The number of tasks that fit, and the resources of each."""

    concurrent: int
    """Simultaneous tasks; all of them fit into the cluster at once."""
    cpus: int
    """CPU cores per worker, and its threads."""
    gpus: float
    """GPUs per worker; below 1, several tasks share one."""
    workers: int = 1
    """Workers per task."""

    @property
    def devices(self) -> float:
        """Devices that count in a task's device-hours: the GPUs, or else CPU cores, of all its workers."""
        return (self.gpus or self.cpus) * self.workers


class Node(NamedTuple):
    """Resources of one machine of a cluster."""

    cpus: int
    gpus: float


def this_machine() -> Node:
    """Resources of this machine that this process may use."""
    return Node(usable_cores(), float(torch.cuda.device_count()))


def _fitting(nodes: Sequence[Node], cpus: int, gpus: float, workers: int = 1, *, spread: bool = False) -> int:
    """Number of tasks that fit; a worker lies on one node, and a share of a GPU on one GPU."""
    places = []
    for node in nodes:
        by_gpu = math.inf if gpus == 0 else node.gpus // gpus if gpus >= 1 else int(node.gpus) * int(1 / gpus + 1e-9)
        places.append(int(min(node.cpus // cpus, by_gpu)))
    if not spread:
        return sum(places) // workers
    # Each task takes one place on each of `workers` different nodes, so n tasks use at most n places of a node.
    trials = 0
    while sum(min(each, trials + 1) for each in places) >= (trials + 1) * workers:
        trials += 1
    return trials


def place(
    cells: int,
    *,
    nodes: Sequence[Node],
    cpus: int | None,
    gpus: float | None,
    exactly: bool = False,
    workers: int = 1,
    spread: bool = False,
) -> Placement:
    """Fit `cells` tasks onto the nodes of a cluster.

    Args:
        cells: tasks that are to run.
        nodes: machines of the cluster.
        cpus: cores per worker; None shares the cores among as many tasks as there are cells or cores.
        gpus: GPUs per worker; None gives one where there are any.
        exactly: run all tasks at once, or raise ConfigError.
        workers: workers per task.
        spread: put a task's workers on different nodes.

    ConfigError where a single task, or with `exactly` any task, does not fit: it would wait for ever.
    """
    most_cpus, most_gpus = max(node.cpus for node in nodes), max(node.gpus for node in nodes)
    gpus = (1.0 if most_gpus >= 1 else 0.0) if gpus is None else gpus
    if not 0 <= gpus <= most_gpus:
        most = (
            f"between 0 and {most_gpus:g}, what the largest node has" if most_gpus else "0, as no node here has a GPU"
        )
        raise ConfigError(f"--gpus-per-trial {gpus:g}: must be {most}")
    if cpus is not None and not 0 < cpus <= most_cpus:
        raise ConfigError(f"--cpus-per-trial {cpus}: must be between 1 and {most_cpus}, what the largest node has")
    if _fitting(nodes, cpus or 1, gpus) == 0:
        raise ConfigError(f"no node has {counted(cpus or 1, 'core')} and {counted(gpus, 'GPU')} together")
    fitting = _fitting(nodes, cpus or 1, gpus, workers, spread=spread)
    if fitting == 0:
        each = counted(cpus or 1, "core") + (f" and {counted(gpus, 'GPU')}" if gpus else "")
        where = "on different nodes (--spread)" if spread else "at once"
        have = ", ".join(
            counted(node.cpus, "core") + (f" and {counted(node.gpus, 'GPU')}" if node.gpus else "") for node in nodes
        )
        raise ConfigError(
            f"--workers {workers}: the cluster has no room for so many {where}, with {each} each; its nodes have {have}"
        )
    wanted = min(cells, fitting)
    if exactly and wanted < cells:
        raise ConfigError(f"{cells} workers at once: the cluster has room for {wanted} ({counted(gpus, 'GPU')} each)")
    if cpus is None:
        # The most cores with which as many tasks still fit at once.
        cpus = max(
            c for c in range(1, most_cpus + 1) if c == 1 or _fitting(nodes, c, gpus, workers, spread=spread) >= wanted
        )
    return Placement(wanted, cpus, gpus, workers)
