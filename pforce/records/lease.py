"""Leases: they show which process does a piece of work, so that others do not repeat it. Correctness never rests on
them.

`leases/KEY/GENERATION.json` names the holder of a key. It is created exclusively (a hard link; in a bucket
put-if-absent), and the highest generation counts. The holder raises the number in `GENERATION.beat` beside it; a
contender that has seen no change of it for `PATIENCE` seconds of its own monotonic clock, or that knows the holder's
process to be dead, creates the next generation. A holder that finds a higher generation stops before it publishes. No
clock is compared with another machine's, and no file is locked: Lustre and NFS may grant the same lock on several
nodes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TypeVar

from pforce.base.errors import InputError
from pforce.base.foreign import parse_json, quoted
from pforce.records.provenance import user
from pforce.storage import Storage, StorageError

LEASES = "leases"
"""Folder of leases below a storage's root."""
FORMAT = 1
BEAT_SECONDS = 20.0
PATIENCE = 120.0
"""Seconds without a beat after which a lease is taken over."""
LOOK_SECONDS = 1.0
MOST_BYTES = 1 << 16
Item = TypeVar("Item")
NAME = re.compile(r"(?P<generation>\d{1,9})\.json")


class LeaseError(InputError, RuntimeError):
    """Leases cannot be used. The message gives the folder, the reason and the remedy."""


class LeaseLost(RuntimeError):
    """Another process has taken the work over, because this one gave no sign of life; this one must publish nothing."""


@dataclass(frozen=True)
class Holder:
    """The holder of a lease."""

    nonce: str
    user: str
    host: str
    process: int
    born: str
    """Machine and start of the process, which distinguish it from a later one with the same number; empty where
    unknown."""
    since: float
    """Start of the lease in seconds since 1970, by the holder's clock: shown, never compared."""
    doing: str
    """Description of its work, in a word or two."""
    format: int = FORMAT

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"{self.user} on {self.host} (process {self.process}) since {when}, {self.doing}"

    @classmethod
    def here(cls, doing: str) -> Holder:
        """This process as a holder, with a new nonce."""
        process = os.getpid()
        return cls(uuid.uuid4().hex, user(), socket.gethostname(), process, _born(process), time.time(), doing)

    @property
    def dead(self) -> bool:
        """Whether the process is known to be gone, which can only be known of this machine's processes."""
        return bool(self.born) and self.host == socket.gethostname() and self.born.split()[0] == _machine() and (
            _born(self.process) != self.born
        )  # fmt: skip


@cache
def _machine() -> str:
    """An identifier of this machine since its boot, and of its process namespace; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """Machine and start of a process; empty where there is none, or where processes cannot be inspected."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    # The name of the program, in brackets, may hold blanks.
    after = status.rpartition(")")[2].split()
    return f"{_machine()} {after[19]}" if _machine() and after[0] not in "ZX" else ""


Wait = Callable[["Holder | None"], None]
"""Callback while a process waits; gets the holder of the lease, or None where that cannot be read."""


def patient(holder: Holder | None) -> None:
    """Wait without a message."""


class Lease:
    """A key that this process holds until `release`. A thread raises its beat."""

    def __init__(self, storage: Storage, key: str, generation: int, holder: Holder) -> None:
        self.storage, self.key, self.generation, self.holder = storage, key, generation, holder
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    @property
    def folder(self) -> str:
        """Folder of the key, below the storage's root."""
        return f"{LEASES}/{self.key}"

    def check(self) -> None:
        """Raise LeaseLost where another process has taken over, or where the lease is gone."""
        try:
            found = _generations(self.storage, self.folder)
            mine = _read(self.storage, self.folder, self.generation) if self.generation in found else None
        except StorageError:  # the bucket does not answer, so nobody can have taken over there, either
            return
        if max(found, default=0) != self.generation or mine is None or mine.nonce != self.holder.nonce:
            raise LeaseLost(
                f"{self.key}: another process has taken this over, because this one had given no sign of life for "
                f"{PATIENCE:.0f} s; this process writes nothing more of it"
            )

    def _beat(self) -> None:
        count = 0
        while not self.over.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError, StorageError):  # a late beat does no harm
                self.storage.put(f"{self.folder}/{self.generation}.beat", str(count).encode())

    def release(self) -> None:
        """Give the lease up. A lease that was lost is left alone."""
        self.over.set()
        with suppress(OSError, StorageError, LeaseLost):
            self.check()
            for generation in sorted(
                _generations(self.storage, self.folder)
            ):  # the highest last, as it counts until then
                for ending in ("beat", "json"):
                    self.storage.remove(f"{self.folder}/{generation}.{ending}")
            self.storage.leave(self.folder)


def _generations(storage: Storage, folder: str) -> set[int]:
    names = (name.rpartition("/")[2] for name in storage.names(folder))
    return {int(match["generation"]) for name in names if (match := NAME.fullmatch(name))}


def _read(storage: Storage, folder: str, generation: int) -> Holder | None:
    """The holder of a generation; None where it is gone or cannot be parsed."""
    content = storage.content(f"{folder}/{generation}.json", MOST_BYTES)
    try:
        found = parse_json(content) if content else None
        if not isinstance(found, dict):
            return None
        if found.get("format") != FORMAT:
            raise LeaseError(
                f"{storage.root / folder}: a lease of format {quoted(found.get('format'))}, this version reads "
                f"{FORMAT}: a newer pforce holds it; install that version, or wait until it has ended"
            )
        return Holder(**{name.name: found[name.name] for name in fields(Holder)})
    except (ValueError, KeyError, TypeError):
        return None


def held_below(storage: Storage, prefix: str, keys: Iterable[str]) -> set[str]:
    """The names of those keys `PREFIX/NAME` that a process holds, unless that process is known to be dead."""
    found, below = set(), f"{LEASES}/{prefix}"
    there = {name.split("/")[-2] for name in storage.list(below)} if storage.remote else set(storage.names(below))
    for name in there.intersection(keys):  # thousands of keys may be free
        folder = f"{LEASES}/{prefix}/{name}"
        highest = max(_generations(storage, folder), default=0)
        holder = _read(storage, folder, highest) if highest else None
        if holder is not None and not holder.dead:
            found.add(name)
    return found


class Contender:
    """A process that wants to hold a key, with its observations of the present holder."""

    def __init__(self, storage: Storage, key: str, doing: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.storage, self.key, self.doing, self.clock = storage, key, doing, clock
        self.folder = f"{LEASES}/{key}"
        self.seen: tuple[object, float] | None = None
        """The last generation, holder and beat, and the time when they were first seen."""
        self.holder: Holder | None = None
        """The holder at the last try."""

    def try_acquire(self) -> Lease | None:
        """The lease, or None while another process holds it. LeaseError where leases cannot be used."""
        found = _generations(self.storage, self.folder)
        highest = max(found, default=0)
        if highest:
            self.holder = _read(self.storage, self.folder, highest)
            if not self._is_over(highest):
                return None
        holder = Holder.here(self.doing)
        name = f"{self.folder}/{highest + 1}.json"
        try:
            created = self.storage.create(name, json.dumps(asdict(holder)).encode())
        except OSError as error:
            raise LeaseError(
                f"{self.storage.root / self.folder}: no lease can be written ({error.strerror}); check the permissions "
                f"of {self.storage.root / LEASES}, and that it is a folder"
            ) from error
        if not created:
            self.holder = _read(self.storage, self.folder, highest + 1)
            self.storage.leave(self.folder)  # its holder may have removed everything but our scratch file meanwhile
            return None
        return Lease(self.storage, self.key, highest + 1, holder)

    def _is_over(self, generation: int) -> bool:
        if self.holder is not None and self.holder.dead:
            return True
        beat = self.storage.content(f"{self.folder}/{generation}.beat", MOST_BYTES)
        state, now = (generation, self.holder and self.holder.nonce, beat), self.clock()
        if self.seen is None or self.seen[0] != state:
            self.seen = (state, now)
        return now - self.seen[1] >= PATIENCE

    def acquire(self, wait: Wait) -> Lease:
        """Wait for the lease and return it.

        Args:
            wait: called about once per second with the holder.
        """
        while (lease := self.try_acquire()) is None:
            wait(self.holder)
            time.sleep(LOOK_SECONDS)
        return lease


@contextmanager
def leased(storage: Storage, key: str, doing: str, *, wait: Wait = patient) -> Iterator[Lease]:
    """Hold a key during the block; wait for it while another process holds it."""
    lease = Contender(storage, key, doing).acquire(wait)
    try:
        yield lease
    finally:
        lease.release()


def shared(
    storage: Storage,
    items: Sequence[Item],
    *,
    key: Callable[[Item], str],
    done: Callable[[Item], bool],
    doing: str,
    wait: Wait = patient,
) -> Iterator[Item]:
    """Yield the pieces of work that fall to this process, one at a time, each while it holds its lease.

    Pieces that another process is working on come last, and only if they are still missing then. So any number of
    processes with the same list do each piece once, and end together.

    Args:
        key: key of an item's lease.
        done: whether an item's result is there, whoever made it.
        wait: called about once per second with a holder, while others hold all missing pieces.
    """
    contenders: dict[str, Contender] = {}
    left = list(items)
    while left:
        held: list[Item] = []
        for item in left:
            if done(item):
                continue
            contender = contenders.setdefault(key(item), Contender(storage, key(item), doing))
            lease = contender.try_acquire()
            if lease is None:
                held.append(item)
                continue
            try:
                if not done(item):  # its holder may have ended since
                    yield item
            finally:
                lease.release()
        if len(held) == len(left):
            wait(contenders[key(held[0])].holder)
            time.sleep(LOOK_SECONDS)
        left = held
