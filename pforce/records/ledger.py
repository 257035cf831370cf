"""The ledger: finds, keeps and forgets the records in a storage. Planning lists names; contents are read on demand.

Nothing here locks. A record is written once, whole, under a name of its own. Of several records with the same digest,
the one that finished first counts, on every machine; ties are decided by content. Whether a record lies in a file of
its own or in a pack (`pforce.records.packs`) makes no difference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pforce.base.files import read_small, sha256_of, write_bytes
from pforce.records.packs import PackedError, Packs
from pforce.records.parts import Part
from pforce.records.record import MOST_BYTES, NAME, NewerRecord, Record, RecordError, file_name, parse
from pforce.storage import Storage, StorageError

RECORDS, FILES = "records", "files"
"""Folders below a storage's root."""
Say = Callable[[str], None]


class Ledger:
    """The records of a storage.

    Args:
        say: called with one line for each record that is damaged, or that exists twice with different numbers.
    """

    def __init__(self, storage: Storage, say: Say = lambda line: None) -> None:
        self.storage, self.say = storage, say
        self.folder = storage.root / RECORDS
        self.packs = Packs(storage, self._tell)
        self._names: dict[str, list[str]] | None = None
        self._read: dict[str, Record] = {}
        """File name → record."""
        self._told: set[str] = set()

    # --- names ------------------------------------------------------------------------------------------------

    def names(self) -> dict[str, list[str]]:
        """Digest → file names of its records. They are listed once; `refresh` lists them again."""
        if self._names is None:
            found: dict[str, list[str]] = {}
            listed = {name for name in self._listed() if NAME.fullmatch(name)}
            self.packs.refresh()  # after the files: what is packed meanwhile is seen in the one place or the other
            for name in sorted(listed.union(self.packs.names())):
                found.setdefault(name[:32], []).append(name)
            self._names = found
        return self._names

    def refresh(self) -> None:
        """Forget the list of names, because other processes may have finished parts meanwhile."""
        self._names = None

    def look_again(self, parts: Iterable[Part]) -> None:
        """List the records of these parts again, because other processes may have finished them meanwhile."""
        names, wanted = self.names(), {part.digest for part in parts}
        there: dict[str, set[str]] = {each: set() for each in wanted}
        for group in {each[:2] for each in wanted}:
            for name in self.storage.names(f"{RECORDS}/{group}"):
                if (match := NAME.fullmatch(name)) and match["digest"] in wanted:
                    there[match["digest"]].add(name)
        self.packs.refresh()
        found = {each: sorted(several | self.packs.of(each)) for each, several in there.items()}
        names.update({each: several for each, several in found.items() if several})

    def _listed(self) -> Iterator[str]:
        if self.storage.remote:
            yield from [name.rpartition("/")[2] for name in self.storage.list(RECORDS)]
            return
        try:
            groups = [entry.name for entry in os.scandir(self.folder) if len(entry.name) == 2]
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(
                f"--storage {self.storage}: its records cannot be read ({error.strerror}); check the permissions of "
                f"{self.folder}"
            ) from error
        for group in groups:
            with os.scandir(self.folder / group) as entries:
                yield from [entry.name for entry in entries]

    # --- contents ---------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _load(self, name: str) -> Record | None:
        """The record in a file; None, with a message, where it is damaged. NewerRecord for one that this version cannot
        read."""
        if name in self._read:
            return self._read[name]
        try:
            record = self._found(name)
        except NewerRecord:
            raise
        except FileNotFoundError:  # removed since it was listed
            return None
        except PermissionError as error:
            raise StorageError(
                f"--storage {self.storage}: record {self._path(name)} may not be read ({error.strerror})"
            ) from error
        except (RecordError, ValueError, OSError) as error:
            path = self.packs.where(name) or self._path(name)
            self._tell(name, f"{path}: {error}; it counts as missing, and its part is measured again")
            return None
        self._read[name] = record
        return record

    def _found(self, name: str) -> Record:
        """The record of a file name, from a pack, or else from its own file. FileNotFoundError where neither has it."""
        damage = None
        try:
            if (content := self.packs.content(name)) is not None:
                return parse(content, name)
        except PackedError as error:  # its own file may be there all the same
            damage = error
        try:
            return self.storage.read_checked(
                f"{RECORDS}/{name[:2]}/{name}", lambda path: parse(read_small(path, MOST_BYTES), name)
            )
        except FileNotFoundError:
            if damage is not None:
                raise damage from None
        self.packs.refresh()  # it was packed since it was listed
        if (content := self.packs.content(name)) is None:
            raise FileNotFoundError(name)
        return parse(content, name)

    def _tell(self, key: str, line: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self.say(line)

    def several(self, wanted: str) -> list[Record]:
        """The records of a digest that are not forgotten; the one that counts comes first."""
        forgotten = self._forgotten(wanted)
        found = [
            (record.finished, name, record)
            for name in self.names().get(wanted, ())
            if name not in forgotten and (record := self._load(name)) is not None
        ]
        return [record for _, _, record in sorted(found, key=lambda each: each[:2])]

    def get(self, part: Part | str) -> Record | None:
        """The record of a part that counts; None where there is none."""
        wanted = part if isinstance(part, str) else part.digest
        found = self.several(wanted)
        if not found:
            return None
        first = found[0]
        different = sum(record.results != first.results for record in found)
        if different:
            self._tell(
                wanted,
                f"{first.kind} {wanted}: is there {len(found)} times, {different} with other values than the first "
                f"(of {_when(first)}, {first.provenance.get('host', 'unknown host')}), which counts; `pforce records "
                f"show {wanted}` shows all",
            )
        return first

    def all_of(self, wanted: str) -> list[Record]:
        """All records of a digest that are whole, forgotten ones included; the earliest comes first."""
        found = [
            (record.finished, name, record) for name in self.names().get(wanted, ()) if (record := self._load(name))
        ]
        return [record for _, _, record in sorted(found, key=lambda each: each[:2])]

    def find(self, parts: Iterable[Part | str]) -> dict[str, Record]:
        """Digest → record, for those parts that have one."""
        wanted = {part if isinstance(part, str) else part.digest for part in parts}
        there = self.names()
        return {each: record for each in wanted if each in there and (record := self.get(each)) is not None}

    def all(self, kind: str | None = None) -> Iterator[Record]:
        """The record that counts for each digest, of one kind or of all kinds; tombstones only where they are asked
        for."""
        for each in list(self.names()):
            record = self.get(each)
            if record is not None and record.kind == (kind or record.kind) and (kind or record.kind != "tombstone"):
                yield record

    # --- writing ----------------------------------------------------------------------------------------------

    def put(self, record: Record) -> Record:
        """Write a record, unless the same one is there. Returns the record of its digest that counts."""
        name, content = file_name(record)
        there = self.names().setdefault(record.digest, [])
        if name not in there:
            self._write(f"{RECORDS}/{name[:2]}/{name}", content)
            there.append(name)
        self._read[name] = record
        return self.get(record.digest) or record

    def _write(self, relative: str, content: bytes) -> None:
        write_bytes(self.storage.root / relative, content)
        self.storage.push(relative)

    def put_file(self, content: bytes, sha256: str) -> None:
        """Write a file that a record names, under its hash."""
        relative = _file(sha256)
        if not self.storage.has(relative):
            self._write(relative, content)

    def file(self, sha256: str) -> Path | None:
        """Path of a file that a record names; None, with a message, where it is missing or damaged."""

        def checked(path: Path) -> Path:
            if sha256_of(path) != sha256:
                raise ValueError("is damaged: its content does not match its name")
            return path

        relative = _file(sha256)
        if not self.storage.has(relative):
            self._tell(sha256, f"{self.storage.root / relative}: is not there")
            return None
        try:
            return self.storage.read_checked(relative, checked)
        except (OSError, ValueError) as error:
            self._tell(sha256, f"{self.storage.root / relative}: {error}; it counts as missing")
        return None

    # --- forgetting -------------------------------------------------------------------------------------------

    @staticmethod
    def _tombstone(wanted: str, content: str) -> Part:
        return Part("tombstone", {"of": wanted, "content": content})

    def _forgotten(self, wanted: str) -> set[str]:
        """File names of those records of a digest that were forgotten."""
        return {
            name
            for name in self.names().get(wanted, ())
            if self._tombstone(wanted, name.split(".")[1]).digest in self.names()
        }

    def forget(self, wanted: str, reason: str, *, who: dict[str, str] | None = None) -> int:
        """Write a tombstone for each record of a digest, so that it no longer counts; returns their number. Later
        measurements count again."""
        now = time.time()
        names = [name for name in self.names().get(wanted, ()) if name not in self._forgotten(wanted)]
        for name in names:
            part = self._tombstone(wanted, name.split(".")[1])
            self.put(Record.of(part, notes=(reason,), started=now, finished=now, provenance=who or {}))
        return len(names)


def _file(sha256: str) -> str:
    return f"{FILES}/{sha256[:2]}/{sha256}"


def _when(record: Record) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))


def take_in(ledger: Ledger, record: Record, origin: str) -> bool:
    """Put a record from elsewhere and return whether it is new. Its origin is noted, as its numbers cannot be verified.

    It is not new where a record with the same values is there. With other values both are kept; one of them counts, and
    that is reported.
    """
    there = ledger.several(record.digest)
    if record.kind == "diverged":  # of several, the one with the fewest images bounds the training
        known = any(found.values == record.values for found in there)
    else:
        known = any(found.results == record.results for found in there)
    if known:
        return False
    if not there and ledger.all_of(record.digest):  # forgotten: an import does not bring it back
        return False
    ledger.put(replace(record, origin=record.origin or origin))
    return True
