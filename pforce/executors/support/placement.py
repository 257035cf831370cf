"""Number of simultaneous tasks and their resources, computed from the cluster so that nothing waits for ever."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pforce.base.errors import ConfigError
from pforce.base.machine import usable_cores
from pforce.base.words import counted

GRAIN = 1e4
"""Parts of a core or a GPU that Ray can count. Shares are rounded down to them, so that all of them fit."""
TYPE = "accelerator_type:"
"""Beginning of the resource by which Ray names the type of a node's GPUs. Each node has one unit of it."""


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
    spread: bool = False
    """Whether every worker of a task has a node of its own."""
    gpu_type: str | None = None
    """Type of the GPUs, as the cluster names it."""
    per_node: int | None = None
    """Workers per node of a task that has whole nodes; None for tasks that share nodes."""
    node_cpus: int = 0
    """Cores of each of the whole nodes."""

    @property
    def devices(self) -> float:
        """Devices that count in a task's device-hours: the GPUs, or else CPU cores, of all its workers."""
        return (self.gpus or self.cpus) * self.workers

    @property
    def resources(self) -> dict[str, float]:
        """Resources of a worker as Ray names them. The workers of whole nodes leave no core to others."""
        cpus = float(self.cpus) if self.per_node is None else math.floor(self.node_cpus / self.per_node * GRAIN) / GRAIN
        gpus = math.floor(self.gpus * GRAIN + 1e-6) / GRAIN
        return {
            "CPU": cpus, **({"GPU": gpus} if gpus else {}), **({TYPE + self.gpu_type: 1e-3} if self.gpu_type else {}),
        }  # fmt: skip

    def room(self, nodes: Sequence[Node]) -> int:
        """Number of such tasks that fit into a cluster at once."""
        there = [node for node in nodes if self.gpu_type is None or self.gpu_type in node.gpu_types]
        if self.per_node is None:
            return _fitting(there, self.cpus, self.gpus, self.workers, spread=self.spread)
        whole = sum(node.cpus == self.node_cpus and _places(node, 1, self.gpus) >= self.per_node for node in there)
        return whole // (self.workers // self.per_node)


class Node(NamedTuple):
    """Resources of one machine of a cluster."""

    cpus: int
    gpus: float
    gpu_types: tuple[str, ...] = ()
    """Names of the GPUs' type; none where it is not known."""


def this_machine() -> Node:
    """Resources of this machine that this process may use. Where its GPUs differ, it has no type of GPU."""
    names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    return Node(usable_cores(), float(torch.cuda.device_count()), tuple(names) if len(names) == 1 else ())


def _places(node: Node, cpus: int, gpus: float) -> int:
    """Number of workers that fit onto a node; a share of a GPU lies on one GPU."""
    by_gpu = math.inf if gpus == 0 else node.gpus // gpus if gpus >= 1 else int(node.gpus) * int(1 / gpus + 1e-9)
    return int(min(node.cpus // cpus, by_gpu))


def _fitting(nodes: Sequence[Node], cpus: int, gpus: float, workers: int = 1, *, spread: bool = False) -> int:
    """Number of tasks that fit; a worker lies on one node."""
    places = [_places(node, cpus, gpus) for node in nodes]
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
    gpu_type: str | None = None,
    whole_nodes: bool = False,
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
        gpu_type: type of the GPUs, as `find_type` takes it; None takes any.
        whole_nodes: give each task nodes that no other task shares, as few as hold its workers.

    ConfigError where a single task, or with `exactly` any task, does not fit: it would wait for ever.
    """
    if gpu_type is not None:
        gpu_type = find_type(gpu_type, nodes, gpus)
        nodes = [node for node in nodes if gpu_type in node.gpu_types]
    gpus = _checked(nodes, cpus, gpus)
    if whole_nodes:
        one = _whole(nodes, gpus, workers, spread=spread, gpu_type=gpu_type)
    else:
        one = Placement(1, cpus or 1, gpus, workers, spread, gpu_type)
    fitting = one.room(nodes)
    if fitting == 0:
        raise ConfigError(_no_room(nodes, one))
    wanted = min(cells, fitting)
    if exactly and wanted < cells:
        raise ConfigError(f"{cells} workers at once: the cluster has room for {wanted} ({counted(gpus, 'GPU')} each)")
    cores = one.cpus
    if cpus is None and not whole_nodes:
        # The most cores with which as many tasks still fit at once.
        cores = max(
            c
            for c in range(1, max(node.cpus for node in nodes) + 1)
            if c == 1 or _fitting(nodes, c, gpus, workers, spread=spread) >= wanted
        )
    return Placement(wanted, cores, gpus, workers, spread, gpu_type, one.per_node, one.node_cpus)


def _checked(nodes: Sequence[Node], cpus: int | None, gpus: float | None) -> float:
    """GPUs per worker. ConfigError where no node has what one worker needs."""
    most_cpus, most_gpus = max(node.cpus for node in nodes), max(node.gpus for node in nodes)
    gpus = (1.0 if most_gpus >= 1 else 0.0) if gpus is None else gpus
    if not 0 <= gpus <= most_gpus:
        most = (
            f"between 0 and {most_gpus:g}, what the largest node has" if most_gpus else "0, as no node here has a GPU"
        )
        raise ConfigError(f"--gpus-per-trial {gpus:g}: must be {most}")
    if (gpus > 1 and gpus != int(gpus)) or 0 < gpus < 1 / GRAIN:
        raise ConfigError(
            f"--gpus-per-trial {gpus:g}: must be a whole number, or a share of one GPU, {1 / GRAIN:g} to 1"
        )
    if cpus is not None and not 0 < cpus <= most_cpus:
        raise ConfigError(f"--cpus-per-trial {cpus}: must be between 1 and {most_cpus}, what the largest node has")
    if _fitting(nodes, cpus or 1, gpus) == 0:
        raise ConfigError(f"no node has {counted(cpus or 1, 'core')} and {counted(gpus, 'GPU')} together")
    return gpus


def _listed(nodes: Sequence[Node]) -> str:
    return ", ".join(
        counted(node.cpus, "core") + (f" and {counted(node.gpus, 'GPU')}" if node.gpus else "") for node in nodes
    )


def _no_room(nodes: Sequence[Node], one: Placement) -> str:
    """The message where a task of several workers does not fit into a cluster."""
    where = "on different nodes (--spread)" if one.spread else "at once"
    if one.per_node is not None:
        where = f"on {counted(one.workers // one.per_node, 'node')} of its own (--whole-nodes)"
    each = counted(one.cpus, "core") + (f" and {counted(one.gpus, 'GPU')}" if one.gpus else "")
    return (
        f"--workers {one.workers}: the cluster has no room for so many {where}, with {each} each; its nodes have "
        f"{_listed(nodes)}"
    )


def _whole(nodes: Sequence[Node], gpus: float, workers: int, *, spread: bool, gpu_type: str | None) -> Placement:
    """One task on whole nodes: on as few as hold its workers, with as many workers on each. ConfigError where the nodes
    that can hold a worker differ: on the larger ones there would be room for another task."""
    able = [node for node in nodes if _places(node, 1, gpus) > 0]
    if len({(node.cpus, node.gpus) for node in able}) > 1:
        raise ConfigError(
            f"--whole-nodes: needs nodes that are alike, and these have {_listed(able)}: choose with --gpu-type, or "
            "leave it out"
        )
    most = 1 if spread else _places(able[0], 1, gpus)
    per_node = next(each for each in range(min(most, workers), 0, -1) if workers % each == 0)
    cores = able[0].cpus
    return Placement(1, cores // per_node, gpus, workers, spread, gpu_type, per_node, cores)


def _words(name: str) -> str:
    return f" {' '.join(re.findall('[a-z0-9]+', name.lower()))} "


def find_type(wanted: str, nodes: Sequence[Node], gpus: float | None) -> str:
    """The cluster's name of a type of GPU.

    Args:
        wanted: a user's name: the same, in any case, or some of its words: H100 of `NVIDIA H100 80GB HBM3`.
        gpus: GPUs per worker.

    ConfigError where no node has such a GPU, several types are named so, or workers have no GPU.
    """
    if gpus == 0:
        raise ConfigError(f"--gpu-type {wanted}: --gpus-per-trial is 0; leave one of them out")
    types = sorted({each for node in nodes if node.gpus for each in node.gpu_types})
    found = [each for each in types if each.lower() == wanted.lower()]
    found = found or [each for each in types if wanted.strip() and _words(wanted) in _words(each)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"--gpu-type {wanted}: names {' and '.join(found)}; give one of them")
    if not any(node.gpus for node in nodes):
        raise ConfigError(f"--gpu-type {wanted}: no node has a GPU")
    known = ", ".join(types) or "of no known type, or of several on one machine (CUDA_VISIBLE_DEVICES chooses)"
    raise ConfigError(f"--gpu-type {wanted}: no node has such a GPU; there are {known}")
