"""A write-ahead file: what is to be recorded, in order, on the local disk before anyone is asked to take it.

One JSON object a line. A line counts once its line feed is written: half a line, as a kill leaves it, is ignored.
How far the file was delivered is kept beside it and replaced whole; where that is older than the truth, or lost,
records are delivered again, which `pforce.tracking.delivery` makes harmless.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pforce.tracking.checks import TrackingError

Record = dict[str, Any]
READ_BYTES = 1 << 22
MOST_FILES = 99
"""Of one sweep at once: of several drivers, or for several stores."""


class Entry(NamedTuple):
    """A record and the place in the file where the next one begins."""

    record: Record
    end: int


class SpoolInUse(Exception):
    """Another process appends to the file."""


class Spool:
    """One file, held by this process until `close`.

    `append` may be called by any one thread while another one reads. SpoolInUse where another process has the file.
    """

    def __init__(self, path: Path, store: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.descriptor = _locked(path)
        self.size = os.fstat(self.descriptor).st_size
        self.torn = self.size > 0 and os.pread(self.descriptor, 1, self.size - 1) != b"\n"
        first = next(iter(self.read(0)), None)
        if first is None or "spool" not in first.record:
            # An empty file, or one killed in its first line: nothing in it could have been delivered.
            os.ftruncate(self.descriptor, 0)
            self.size, self.torn = 0, False
            self.append({"spool": uuid.uuid4().hex, "store": store})
            first = next(iter(self.read(0)))
        self.header, self.start = first.record, first.end

    @property
    def store(self) -> str:
        """The store that the records are for."""
        return str(self.header["store"])

    def append(self, record: Record) -> None:
        """Write a record's line. TrackingError where the disk does not take it; the file stays readable."""
        line = ("\n" if self.torn else "") + json.dumps(record, separators=(",", ":")) + "\n"
        data = line.encode()
        self.torn = True
        try:
            while data:
                written = os.write(self.descriptor, data)
                self.size += written
                data = data[written:]
        except OSError as error:
            raise TrackingError(
                f"{self.path}: a record cannot be appended ({error.strerror}); free space there, then give the same "
                "command again"
            ) from error
        self.torn = False

    def read(self, offset: int, most: int = READ_BYTES) -> Iterator[Entry]:
        """Whole records from an offset on, about `most` bytes of them and at least one if there is one."""
        data = os.pread(self.descriptor, most, offset)
        while b"\n" not in data and len(data) == most:
            most *= 2
            data = os.pread(self.descriptor, most, offset)
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = {}  # half a line, closed by the one that came after it
            yield Entry(record if isinstance(record, dict) else {}, offset)

    def count(self, offset: int) -> int:
        """Records from an offset on."""
        number = 0
        while entries := list(self.read(offset)):
            number += sum(bool(entry.record) for entry in entries)
            offset = entries[-1].end
        return number

    # --- how far it was delivered ------------------------------------------------------------------------------

    @property
    def _position(self) -> Path:
        return self.path.with_suffix(".position")

    def position(self) -> dict[str, Any]:
        """What `mark` wrote for this file; empty where it did not, or for another one of that name."""
        try:
            found = json.loads(self._position.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("spool") == self.header["spool"] else {}

    def mark(self, position: dict[str, Any]) -> None:
        """Keep how far the file was delivered: the file of that appears whole or not at all."""
        scratch = self._position.with_suffix(".position.tmp")
        scratch.write_text(json.dumps({"spool": self.header["spool"], **position}), encoding="utf-8")
        scratch.replace(self._position)

    # --- its end -----------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Everything is delivered: leave nothing."""
        self.path.unlink(missing_ok=True)
        self._position.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the file to others."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise SpoolInUse(str(path)) from error
        os.close(descriptor)  # its holder delivered and removed it meanwhile


def open_spool(folder: Path, identity: str, store: str) -> Spool:
    """The sweep's file for this store: `<identity>.jsonl`, or the next free name where that is taken."""
    for number in range(1, MOST_FILES + 1):
        path = folder / (f"{identity}.jsonl" if number == 1 else f"{identity}-{number}.jsonl")
        try:
            spool = Spool(path, store)
        except SpoolInUse:
            continue
        if spool.store == store:
            return spool
        spool.close()
    raise TrackingError(f"{folder}: {MOST_FILES} files of this sweep wait there; look at them, then move them away")


def leftovers(folder: Path, store: str) -> Iterator[Spool]:
    """Files that no process holds, oldest first; the caller closes each. Those of another store are there too."""
    ages: list[tuple[float, Path]] = []
    for path in folder.glob("*.jsonl") if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # its sweep has just ended
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages):
        try:
            yield Spool(path, store)
        except SpoolInUse:
            continue
