"""Trials of what the storage's file system has to keep, by processes of their own, and this user's quota on it."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pforce.base.mounts import Mount, mount_of
from pforce.base.words import counted
from pforce.executors.support import sharing
from pforce.executors.support.sharing import ROUNDS
from pforce.orchestration.doctor.check import Check, State, gib

TRIAL_SECONDS = 15.0
"""Most seconds for all trials together: where a server of files hangs they never end."""
QUOTA_SECONDS = 10.0
QUOTA_SHARE, QUOTA_SHARE_PROBLEM = 0.9, 0.99
SHARED = (
    "Give --storage a folder of another file system (NFS 4, Lustre, BeeGFS, …); a bucket by its address "
    "(s3://BUCKET/PREFIX), not mounted."
)
SQLITE = (
    "Give --tracking-uri an MLflow server, or a database on a local disk (sqlite:////FOLDER/mlflow.db): "
    "`pforce mirror --storage DIR` fills it from the storage."
)


def _begin(verb: str, folder: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", str(Path(sharing.__file__)), verb, str(folder), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def _late() -> dict[str, str]:
    return {"error": f"no answer within {TRIAL_SECONDS:.0f} s"}


def _end(process: subprocess.Popen[str], until: float) -> Any:
    """Result of a trial. A process that hangs in the file system is killed and not waited for."""
    try:
        output, _ = process.communicate(timeout=max(0.1, until - time.monotonic()))
        return json.loads(output)
    except subprocess.TimeoutExpired:
        process.kill()
        return _late()
    except ValueError:
        return {"error": f"the trial ended with code {process.returncode}"}


def trials(folder: Path, *, seconds: float = TRIAL_SECONDS) -> dict[str, Any]:
    """Results of trials of a folder by two processes at a time: `claims`, the names that each was the first to create;
    `seen`, what was wrong with files that one made and the other read; `lock`, what became of a lock on a file that
    another process holds."""
    name, until = f".pforce-doctor-{secrets.token_hex(8)}", time.monotonic() + seconds
    try:
        pair = [_begin("claim", folder, f"{name}.claim") for _ in range(2)]
        claims = {f"process {number}": _end(each, until) for number, each in enumerate(pair, 1)}
        writer, reader = _begin("put", folder, f"{name}.put"), _begin("watch", folder, f"{name}.put")
        seen = _end(reader, until)
        seen = _end(writer, until) or seen
        holder = _begin("hold", folder, f"{name}.lock")
        assert holder.stdout is not None
        if select.select([holder.stdout], [], [], max(0.1, until - time.monotonic()))[0]:
            word = json.loads(holder.stdout.readline() or '"the trial ended"')
        else:
            word = _late()
        lock = _end(_begin("lock", folder, f"{name}.lock"), until) if word == "held" else word
        _end(holder, until)
        return {"claims": claims, "seen": seen, "lock": lock}
    finally:
        sharing.remove(str(folder), name)


def _error(results: Mapping[str, Any]) -> str | None:
    return next((str(each["error"]) for each in results.values() if isinstance(each, dict)), None)


def exclusive(claims: Mapping[str, Any], storage: Path) -> Check:
    """Check that of several processes or nodes one alone creates a file, on which leases and records rest."""
    name, who = "file creation", " and ".join(claims) if len(claims) <= 3 else counted(len(claims), "machine")
    if (error := _error(claims)) is not None:
        return Check(name, "problem", f"{storage}: a trial failed: {error}", SHARED)
    firsts = Counter(number for won in claims.values() for number in won)
    several = sum(count > 1 for count in firsts.values())
    lost = ROUNDS - len(firsts)
    if several or lost:
        text = f"{storage}, {who}: of {ROUNDS} files {several} were created by more than one, {lost} by none"
        return Check(name, "problem", f"{text}: the same work would be done twice", SHARED)
    return Check(name, "ok", f"{storage}, {who}: each of {ROUNDS} files was created by one alone")


def whole(seen: Any, storage: Path) -> Check:
    """Check that files which are renamed into their place appear whole."""
    wrong = seen["error"] if isinstance(seen, dict) else seen
    if wrong:
        return Check("whole files", "problem", f"{storage}: {wrong}", SHARED)
    return Check("whole files", "ok", f"{storage}: {ROUNDS} files of one process appeared whole to another")


def locks(words: Mapping[str, Any], storage: Path, database: Path | None) -> Check:
    """Check whether a lock on a file holds against other processes or nodes: sqlite needs that, pforce itself does not.

    Args:
        words: who tried → what became of it.
        database: the sqlite database in use; None for other stores.
    """
    name = "file locks"
    bad = {who: word["error"] if isinstance(word, dict) else word for who, word in words.items() if word != "refused"}
    if not bad:
        return Check(name, "ok", f"{storage}: a lock holds against {', '.join(words)}")
    who, word = next(iter(bad.items()))
    what = f"{who} got a lock that another one held" if word == "held" else f"{who} cannot lock: {word}"
    if database is not None and database.is_relative_to(storage.resolve()):
        text = f"{storage}: {what}; a sqlite database there, {database}, will be damaged"
        return Check(name, "problem", text, SQLITE)
    return Check(name, "ok", f"{storage}: {what}. pforce needs none, and no database of its own is there", SQLITE)


def _numbers(text: str, point: str) -> tuple[float, float, float, float] | None:
    """(KiB used, most KiB, files, most files) from the output of `quota -w -p` or `lfs quota`; None without a line of
    that file system. A limit of 0 is none."""
    words = text.replace("*", "").split()
    for start, word in enumerate(words):
        row = words[start + 1 : start + 9]
        if word == point and len(row) == 8:
            try:
                blocks, soft, hard, files, soft_files, hard_files = (float(row[index]) for index in (0, 1, 2, 4, 5, 6))
            except ValueError:
                continue
            return blocks, hard or soft, files, hard_files or soft_files
    return None


def _asked(mount: Mount) -> tuple[str, str] | None:
    """What the file system's own tool says of this user's quota, and the name by which it calls the file system."""
    if mount.kind == "lustre":
        command, key = ["lfs", "quota", "-u", getpass.getuser(), mount.point], mount.point
    else:
        command, key = ["quota", "-u", "-w", "-p", "-f", mount.point], mount.source
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=QUOTA_SECONDS, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout, key


def quota(storage: Path, *, asked: tuple[str, str] | None = None) -> Check:
    """Check this user's quota on the storage, where the system has a tool that knows it."""
    mount = mount_of(storage)
    said = asked or (None if mount is None else _asked(mount))
    found = None if said is None else _numbers(*said)
    if found is None:
        return Check("quota", "ok", f"{storage}: none is known; a file of 1 MiB could be written")
    blocks, most, files, most_files = found
    shares = [blocks / most if most else 0.0, files / most_files if most_files else 0.0]
    used = f"{gib(blocks * 1024)} of {gib(most * 1024)}" if most else f"{gib(blocks * 1024)}, no limit"
    counts = f"{files:,.0f} of {most_files:,.0f} files" if most_files else f"{files:,.0f} files, no limit"
    full = max(shares)
    state: State = "problem" if full >= QUOTA_SHARE_PROBLEM else "warning" if full >= QUOTA_SHARE else "ok"
    cure = "" if state == "ok" else "Remove files, ask for more, or give another --storage."
    return Check("quota", state, f"{storage}: {used}; {counts}", cure)
