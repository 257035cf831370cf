"""Checks of facts about one or several machines (see `node.facts`), which name the machines with problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pforce.base.words import counted
from pforce.executors.support.node import VERSIONS
from pforce.orchestration.doctor.check import Check, State, gib

Facts = Mapping[str, Any]
SHM_SHARE, SHM_BYTES = 0.3, 2 * 2**30
DISK_WARNING, DISK_PROBLEM = 10 * 2**30, 2**30
OPEN_FILES = 65536


def _where(names: Sequence[str], nodes: Mapping[str, Facts]) -> str:
    return "" if len(nodes) == 1 else f" on {', '.join(names)}"


def _each(nodes: Mapping[str, Facts]) -> str:
    return "" if len(nodes) == 1 else " or more on each node"


def _lowest(nodes: Mapping[str, Facts], value: Callable[[Facts], float]) -> tuple[str, float]:
    name = min(nodes, key=lambda each: value(nodes[each]))
    return name, value(nodes[name])


def shared_memory(nodes: Mapping[str, Facts]) -> Check:
    """Check the size of /dev/shm, where Ray keeps its objects."""
    small = {
        name: facts
        for name, facts in nodes.items()
        if facts["shm"] is None or facts["shm"] < max(SHM_BYTES, SHM_SHARE * facts["memory"])
    }
    if not small:
        name, size = _lowest(nodes, lambda facts: facts["shm"])
        return Check("shared memory", "ok", f"/dev/shm: {gib(size)} of {gib(nodes[name]['memory'])} RAM{_each(nodes)}")
    name, size = _lowest(small, lambda facts: facts["shm"] or 0)
    wanted = max(SHM_BYTES, SHM_SHARE * small[name]["memory"])
    return Check(
        "shared memory",
        "warning",
        f"/dev/shm: {gib(size)} of {gib(small[name]['memory'])} RAM{_where(list(small), nodes)}; Ray takes 30 % of the "
        "RAM for its objects, and goes to the slow /tmp where they do not fit",
        f"Start the container with --shm-size={wanted / 2**30:.0f}g (docker's default is 64 MB), or mount a larger "
        "tmpfs at /dev/shm.",
    )


def disk(nodes: Mapping[str, Facts]) -> list[Check]:
    """Check the free space of the storage and of /tmp."""
    checks = []
    for folder in next(iter(nodes.values()))["free"]:
        name, free = _lowest(nodes, lambda facts, folder=folder: facts["free"][folder])  # type: ignore[misc]
        state: State = "problem" if free < DISK_PROBLEM else "warning" if free < DISK_WARNING else "ok"
        what = "logs and Ray's spilled objects" if folder == "/tmp" else "checkpoints of a large model take 10 GiB"
        cure = "" if state == "ok" else f"Make room on {folder}, or give another folder: {what}."
        where = _each(nodes) if state == "ok" else _where([name], nodes)
        checks.append(Check("free disk", state, f"{folder}: {gib(free)}{where}", cure))
    return checks


def open_files(nodes: Mapping[str, Facts]) -> Check:
    """Check the limit of open files, which matters with many processes on a cluster."""
    name, limit = _lowest(nodes, lambda facts: facts["open_files"][0])
    text = f"limit {limit:,.0f}{_where([name], nodes)}"
    if len(nodes) == 1 or limit >= OPEN_FILES:
        return Check("open files", "ok", text)
    hard = nodes[name]["open_files"][1]
    how = "before `ray start`" if hard >= OPEN_FILES else "as root, or in /etc/security/limits.conf (nofile)"
    return Check("open files", "warning", text, f"Run `ulimit -n {OPEN_FILES}` {how} on every node.")


def cpus(nodes: Mapping[str, Facts]) -> Check:
    """Check the visible cores against those that a container may use."""
    over = {
        name: facts
        for name, facts in nodes.items()
        if facts["cpu_quota"] is not None and facts["cpu_quota"] + 0.5 < facts["cpus"]
    }
    if not over:
        least = min(facts["cpus"] for facts in nodes.values())
        threads = os.environ.get("OMP_NUM_THREADS")
        told = f"; OMP_NUM_THREADS={threads}" if threads else ""
        return Check("CPU", "ok", f"{counted(least, 'core')}{_each(nodes)}, no tighter limit{told}")
    facts = next(iter(over.values()))
    return Check(
        "CPU",
        "warning",
        f"{facts['cpus']} cores are seen, but the container may use {facts['cpu_quota']:g}{_where(list(over), nodes)}: "
        "torch would start too many threads",
        f"Give --cpus-per-trial {max(1, int(facts['cpu_quota']))} or less, and the container more CPUs (--cpus).",
    )


def cache(nodes: Mapping[str, Facts]) -> Check:
    """Check the folder in which data sets are built."""
    failed = {name: facts["cache"] for name, facts in nodes.items() if facts["cache"] and facts["cache"][1]}
    if failed:
        folder, error = next(iter(failed.values()))
        text = f"{folder} cannot be written{_where(list(failed), nodes)}: {error}"
        return Check("data cache", "problem", text, "Set PFORCE_CACHE to a folder that can be written, on every node.")
    found = {facts["cache"][0] for facts in nodes.values() if facts["cache"]}
    return Check("data cache", "ok", ", ".join(sorted(found)))


def versions(nodes: Mapping[str, Facts], own: Facts) -> list[Check]:
    """Check that every node has this machine's versions of Python, torch, Ray and pforce."""
    checks = []
    for what in ("python", *VERSIONS):
        other = {name: facts[what] for name, facts in nodes.items() if facts[what] != own[what]}
        if other:
            listed = ", ".join(f"{version or 'none'} on {name}" for name, version in other.items())
            name = "Python" if what == "python" else what
            cure = f"Install {name} {own[what]} on every node (one image, or one environment on a shared folder)."
            checks.append(Check("versions", "problem", f"{name} {own[what]} here, {listed}", cure))
    if checks:
        return checks
    same = ", ".join(f"{what} {own[what]}" for what in ("python", *VERSIONS))
    return [Check("versions", "ok", f"the same on {counted(len(nodes), 'node')}: {same}")]
