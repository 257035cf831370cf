"""Checks of the folders that one or several machines write to: home, temporary files, room for files, file systems."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pforce.base import slurm
from pforce.base.mounts import IN_MEMORY, OF_A_CONTAINER, Mount, mount_of
from pforce.base.words import counted
from pforce.executors.support.node import CACHE
from pforce.executors.support.surroundings import SOCKET_BYTES, TEMPORARY
from pforce.orchestration.doctor.check import Check, State
from pforce.orchestration.doctor.machines import Facts
from pforce.orchestration.doctor.places import in_container, in_kubernetes

INODES_WARNING, INODES_PROBLEM = 20_000, 500
"""Files of a sweep of a few hundred cells, and of a single training."""
KEPT_ELSEWHERE = ("PFORCE_CACHE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def _where(names: Sequence[str], nodes: Mapping[str, Facts]) -> str:
    return "" if len(nodes) == 1 else f" on {', '.join(names)}"


def home(nodes: Mapping[str, Facts]) -> Check:
    """Check the home folders, in which Ray looks for its token and libraries keep their caches."""
    cure = ("Set HOME to a folder of this user's own that exists and can be written (in a container: -e "
            "HOME=/tmp/home, or a volume), on every node.")  # fmt: skip
    failed = {name: facts["home"] for name, facts in nodes.items() if facts["home"][1]}
    if failed:
        folder, error = next(iter(failed.values()))
        # All that pforce and Ray keep there can lie elsewhere.
        state: State = "warning" if os.environ.get(KEPT_ELSEWHERE[0]) and any(
            os.environ.get(name) for name in KEPT_ELSEWHERE[1:]
        ) else "problem"  # fmt: skip
        return Check("home", state, f"{folder} cannot be written{_where(list(failed), nodes)}: {error}", cure)
    roots = [name for name, facts in nodes.items() if facts["home"][0] == "/"]
    if roots:
        text = f"is /{_where(roots, nodes)}: Ray's token and all caches would lie in the root folder"
        return Check("home", "warning", text, cure)
    found = sorted({facts["home"][0] for facts in nodes.values()})
    return Check("home", "ok", f"{', '.join(found)} can be written")


def temporary(nodes: Mapping[str, Facts]) -> list[Check]:
    """Check the folders of temporary files that TMPDIR and RAY_TMPDIR name, or /tmp."""
    checks = []
    for node, facts in nodes.items():
        for variable in facts["temporary"]:
            checks += _temporary(variable, facts["temporary"], _where([node], nodes))
    if checks:
        return checks
    shown = sorted({found["folder"] for facts in nodes.values() for found in facts["temporary"].values()})
    return [Check("temporary files", "ok", f"{', '.join(shown)} can be written, and sockets fit")]


def _temporary(variable: str, every: Mapping[str, Facts], at: str) -> list[Check]:
    """What is wrong with one of the folders for temporary files. pforce starts Ray in RAY_TMPDIR, `ray start` without
    it in TMPDIR."""
    name, found = "temporary files", every[variable]
    named = f"{variable}={found['folder']}" if variable in TEMPORARY else found["folder"]
    set_it = f"Set {variable if variable in TEMPORARY else 'TMPDIR'} to a short path on a local disk that can"
    if found["error"]:
        text = f"{named} cannot be written{at}: {found['error']}"
        return [Check(name, "problem", text, f"{set_it} be written, such as /tmp.")]

    def long(whose: str, excess: int) -> str:
        size = f"has {SOCKET_BYTES + excess} bytes, and at most {SOCKET_BYTES} are possible"
        return f"{named} is too long{at}: the path of a socket of {whose} in it {size}"

    if variable == "RAY_TMPDIR":
        cure = f"{set_it} be written, such as /tmp/r."
        return [Check(name, "problem", long("Ray", found["excess"]), cure)] if found["excess"] else []
    if found["own_excess"]:
        return [Check(name, "problem", long("Python", found["own_excess"]), f"{set_it} be written, such as /tmp.")]
    checks = []
    if found["excess"] and every.get("RAY_TMPDIR", found)["excess"]:
        cure = "Call `ray start` with --temp-dir=/tmp/r, or set RAY_TMPDIR to such a path; TMPDIR may stay."
        text = f"{long('Ray', found['excess'])}: `ray start` fails, while pforce's own start of Ray does not use it"
        checks.append(Check(name, "warning", text, cure))
    if found["noexec"]:
        text = f"{named} is mounted noexec{at}: training.compile, which loads programs that it makes there, fails"
        checks.append(Check(name, "warning", text, f"{set_it} run programs."))
    return checks


def files_left(nodes: Mapping[str, Facts]) -> Check:
    """Check how many files (inodes) can still be made on the storage, /tmp and the data cache."""
    counts = {
        (folder, node): found
        for node, facts in nodes.items()
        for folder, found in facts["inodes"].items()
        if found is not None
    }
    if not counts:
        return Check("room for files", "ok", "these file systems do not limit the number of files")
    (folder, node), (free, total) = min(counts.items(), key=lambda item: item[1][0])
    state: State = "problem" if free < INODES_PROBLEM else "warning" if free < INODES_WARNING else "ok"
    text = f"{folder}: {free:,} of {counted(total, 'file')} can still be made{_where([node], nodes)}"
    cure = "" if state == "ok" else (
        f"Remove files from {folder}, or give another folder"
        f"{' (PFORCE_CACHE)' if folder == CACHE else ''}: a training makes some dozens, a sweep thousands."
    )  # fmt: skip
    return Check("room for files", state, text, cure)


def file_system(storage: Path, *, mount: Mount | None = None) -> Check:
    """Check that the file system of the storage lasts, and is shared where several machines work."""
    mount = mount or mount_of(storage)
    if mount is None:
        return Check("file system", "ok", f"{storage}: the system does not say which one it is on")
    text = f"{storage} lies on {mount}"
    if mount.network:
        return Check("file system", "ok", f"{text}, which machines share")
    if mount.kind in IN_MEMORY:
        cure = "Give --storage a folder on a disk, or on one that machines share."
        return Check("file system", "warning", f"{text}: in memory, lost when the machine restarts", cure)
    if mount.kind in OF_A_CONTAINER and (in_container() or in_kubernetes()):
        cure = "Mount a volume (docker -v, a PersistentVolumeClaim), and give --storage a folder on it, or a bucket."
        return Check("file system", "warning", f"{text}: this container's own layer, which is lost with it", cure)
    if slurm.in_job():
        cure = "Give --storage a folder that all nodes mount at the same path (NFS, Lustre), or a bucket."
        return Check("file system", "warning", f"{text}: this node's own, which no other node of Slurm sees", cure)
    return Check("file system", "ok", f"{text}, of this machine alone")
