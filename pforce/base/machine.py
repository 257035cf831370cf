"""The cores and the memory of this machine that this process may use, which a container's quota, a job's allocation or
`taskset` may make less than the machine has.

Only the standard library is imported, because the module is sent by value to nodes where pforce may be missing.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS, OWN = Path("/sys/fs/cgroup"), "/proc/self/cgroup"
"""Folder of the control groups, and the file that names this process's own."""


def machine_cores() -> int:
    """CPU cores of this machine."""
    return os.cpu_count() or 1


def allowed_cores() -> int:
    """CPU cores on which this process may run; see `man taskset`."""
    return len(os.sched_getaffinity(0))


def usable_cores(root: Path = CGROUPS, own: str = OWN) -> int:
    """CPU cores that this process may use at once: those on which it may run, within its container's quota, rounded
    down; at least 1."""
    quota = cpu_quota(root, own)
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), int(quota)))


def cores_withheld() -> str:
    """Words on the cores of this machine that this process may not use; empty where it may use all."""
    usable, there = usable_cores(), machine_cores()
    if usable >= there:
        return ""
    return f"{usable} of {there} cores (this process may use no others: taskset, a job's or a container's limit)"


def _number(path: Path, index: int = 0) -> int | None:
    """A number in a control file; None where it is missing or is `max`."""
    try:
        word = path.read_text().split()[index]
        return int(word)
    except (OSError, ValueError, IndexError):
        return None


def _groups(root: Path, own: str) -> list[Path]:
    """Folders of this process's control group and its parents, in version 2 of the hierarchy."""
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        lines = []
    inner = next((line.split("::", 1)[1].strip("/") for line in lines if line.startswith("0::")), "")
    path = root / inner
    return [path, *(parent for parent in path.parents if parent == root or root in parent.parents)]


def cpu_quota(root: Path = CGROUPS, own: str = OWN) -> float | None:
    """CPU cores that the container may use at once; None without a limit."""
    limits = []
    pairs = [(group / "cpu.max", group / "cpu.max") for group in _groups(root, own)]
    pairs.append((root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us"))
    for quota_file, period_file in pairs:
        quota, period = _number(quota_file), _number(period_file, 1 if quota_file == period_file else 0)
        if quota is not None and quota > 0 and period:
            limits.append(quota / period)
    return min(limits, default=None)


def memory_bytes(root: Path = CGROUPS, own: str = OWN) -> int:
    """Bytes of main memory, or of the container's share of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = [*(group / "memory.max" for group in _groups(root, own)), root / "memory/memory.limit_in_bytes"]
    return min([total, *(limit for file in files if (limit := _number(file)) is not None)])
