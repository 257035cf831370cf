"""One driver a sweep: the second one says who holds it, and since when."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from pforce.records.provenance import user
from pforce.storage import Storage, StorageError
from pforce.storage.uri import RAY_JOB
from pforce.tracking import mask
from pforce.validation import InputError

LOCKS = "locks"
CELL = 16
"""Characters of a fingerprint that a lock names it by."""
BEAT_SECONDS, BEATS = 20.0, 4


class SweepHeld(InputError, RuntimeError):
    """Another driver runs this sweep. The message says who, since when, and the cure."""


def this_command() -> str:
    """What was called, as a shell takes it, passwords masked."""
    return mask(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def _job() -> str | None:
    """The Ray job whose command this process is."""
    try:
        found = json.loads(os.environ.get(RAY_JOB, "{}"))
        job: str | None = found.get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return job


def _boot() -> str | None:
    """What tells two machines of one name apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def holder() -> dict[str, Any]:
    """Who this process is."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "boot": _boot(),
        "command": this_command(),
        **({"job": job} if (job := _job()) else {}),
    }


def _holder(who: dict[str, Any]) -> str:
    job = f" (job {who['job']})" if "job" in who else ""
    return f"process {who.get('pid', '?')} of {who.get('user', '?')} on {who.get('host', '?')}{job}"


def held_message(name: str, who: dict[str, Any], what: str = "this sweep is") -> str:
    """What the second driver says."""
    return (
        f"{name}: {what} being run by {_holder(who)} since {who.get('since', '?')}: {who.get('command', '?')}. "
        "Wait for it, or stop it there (kill, or Ctrl-C); the same command then goes on. Where it should run beside "
        "this one, give it another --storage (or another --name, if its command has one)"
    )


@contextmanager
def only_driver(
    storage: Storage, name: str, identity: str, cells: Collection[str] = (), say: Callable[[str], None] = print
) -> Iterator[None]:
    """Hold a sweep until the block or the process ends, however it ends. SweepHeld where another process does.

    In a folder the lock is the kernel's (flock, which NFS carries to other hosts); the file only says who holds it. A
    bucket has no locks: there its file is written again every BEAT_SECONDS, and one that has not been for BEATS of
    them is a dead driver's. Two that start within the same second there may both begin.

    Args:
        storage: where the sweep's files lie.
        name: the sweep's.
        identity: what distinguishes it from others of the name, which may run beside it.
        cells: fingerprints of what it runs: another sweep of the name must not be at one of them (asked of those that
            run on the same folder).
        say: told where a holder has to be watched for a sign of life, which takes up to BEATS * BEAT_SECONDS.
    """
    relative = f"{LOCKS}/{name}-{identity[:12]}.json"
    path = storage.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        with (path.parent / f".{name}").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)  # one at a time looks around: for milliseconds
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise SweepHeld(held_message(name, _parsed(file.read()))) from error
            _refuse_common(path, name, cells)
            who = {**holder(), "folder": str(storage.root), "cells": sorted(cell[:CELL] for cell in cells)}
            _write(file, who)
        if storage.remote:
            _await_end(storage, relative, name, who, say)
        storage.push(relative)
        beat = _Beat(storage, relative, file, who, say) if storage.remote else None
        try:
            with beat or nullcontext():
                yield
        finally:
            if beat is None or not beat.lost:  # else it names another driver
                with suppress(StorageError):
                    storage.delete(relative)


def _write(file: TextIO, who: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps({**who, "beat": time.time()}))
    file.flush()


def _refuse_common(own: Path, name: str, cells: Collection[str]) -> None:
    """SweepHeld where another sweep of the name is at one of the cells: both would write into its run."""
    wanted = {cell[:CELL] for cell in cells}
    for path in own.parent.glob("*.json"):
        if path == own or not re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}\.json", path.name):
            continue
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                there = _parsed(file.read())
                common = wanted & set(there.get("cells", ()))
                if common:
                    what = f"{len(common)} of its {len(wanted)} cells are"
                    raise SweepHeld(held_message(name, there, what)) from error


def _read(storage: Storage, relative: str) -> dict[str, Any]:
    found = storage.read(relative)
    return _parsed(found.decode()) if found else {}


def _await_end(storage: Storage, relative: str, name: str, who: dict[str, Any], say: Callable[[str], None]) -> None:
    """Until the holder named in a bucket has missed its beats. SweepHeld as soon as it gives one."""
    there = _read(storage, relative)
    if all(there.get(key) == who[key] for key in ("host", "boot", "folder")):
        return  # it would hold this machine's flock, which we have
    told = False
    while (left := there.get("beat", 0.0) + BEATS * BEAT_SECONDS - time.time()) > 0:
        if not told:
            say(f"{name}: {_holder(there)} may have ended; it has {left:.0f} s to give a sign of life")
            told = True
        time.sleep(min(left, BEAT_SECONDS / 10))
        now = _read(storage, relative)
        if not now:  # it has ended meanwhile
            return
        if now.get("beat", 0.0) != there.get("beat", 0.0):
            raise SweepHeld(held_message(name, now))


class _Beat(threading.Thread):
    """Writes a bucket's lease again and again, until it finds it to be another's: this process had been away."""

    def __init__(
        self, storage: Storage, relative: str, file: TextIO, who: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self.storage, self.relative, self.file, self.who, self.say = storage, relative, file, who, say
        self.over = threading.Event()
        self.lost = False
        """The lease is another's."""

    def run(self) -> None:
        while not self.over.wait(BEAT_SECONDS):
            # Away, or a full disk: the next beat may reach it.
            with suppress(StorageError, OSError):
                there = _read(self.storage, self.relative)
                if there and any(there.get(key) != self.who[key] for key in ("host", "boot", "pid")):
                    self.lost = True
                    self.say(
                        f"warning: {_holder(there)} runs this sweep too, since {there.get('since', '?')}; stop one"
                    )
                    return
                _write(self.file, self.who)
                self.storage.push(self.relative)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()  # a beat under way would come after the lease's end


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # it is just being written
        return {}
    return found if isinstance(found, dict) else {}
