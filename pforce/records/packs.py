"""Packs: files that hold many records each, for file systems and buckets where files are scarce, and their readers.

`records/packs/CONTENT.pack1`: a line with the number of records, an index line for each (its file name and its size),
then the files themselves, whole and in the order of the index. CONTENT is the hash of the two first, and these name
each record by its hash, so packs of the same records are the same file. A pack is never changed. It is read by its
index, and only what is asked for; a record in it is checked as one in a file of its own.

Whoever removes a record's own file, or a pack, has read all of it in another pack before: packs are in
`pforce.records.packing`. So readers that miss a file look at the list of packs again.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pforce.base.files import content_digest, read_small
from pforce.base.foreign import ForeignError, expect, open_regular, printable
from pforce.records.record import MOST_BYTES, NewerRecord, RecordError
from pforce.storage import Storage, StorageError

PACKS = "records/packs"
FORMAT = 1
"""Version of the format, at the end of a pack's name. A newer one may hold anything, so its storage is refused."""
PACK_NAME = re.compile(r"(?P<content>[0-9a-f]{32})\.pack(?P<format>[0-9]{1,3})")
FIRST = re.compile(rb"pack of ([0-9]{7}) records\n")
FIRST_BYTES = len("pack of 0000000 records\n")
LINE = re.compile(rb"([0-9a-f]{32}\.[0-9a-f]{32}\.json) ([0-9]{7})\n")
LINE_BYTES = 32 + 1 + 32 + len(".json") + 1 + 7 + 1
BEGIN, END = b"\n{\n", b"\n}\n"
"""A record's first and last line, with the end of the line before: no other line of it is nothing but a brace."""
MOST_RECORDS = 50_000
MOST_PACKED = 64 << 20
"""Most bytes of the records of a pack; each has a few kilobytes."""
MOST_FILE = FIRST_BYTES + MOST_RECORDS * LINE_BYTES + MOST_PACKED
TRIES = 10
"""Times that a list of packs is read of which one is gone before it is opened: others are merging them."""


class PackedError(RecordError):
    """A record in a pack is damaged."""


class Place(NamedTuple):
    """A record's bytes in a pack."""

    offset: int
    size: int


class Index(NamedTuple):
    """The index of a pack."""

    places: Mapping[str, Place]
    """File name of a record → its bytes."""
    digests: Mapping[str, Sequence[str]]
    """Digest → file names of its records."""
    damage: str = ""
    """Reason why the index could not be used, and the pack was searched for whole records instead; else empty."""


def _index(places: Mapping[str, Place], damage: str = "") -> Index:
    digests: dict[str, list[str]] = {}
    for name in places:
        digests.setdefault(name[:32], []).append(name)
    return Index(places, digests, damage)


def pack_of(records: Mapping[str, bytes]) -> tuple[str, bytes]:
    """A pack's file name and content.

    Args:
        records: file name → content.
    """
    names = sorted(records)
    assert 0 < len(names) <= MOST_RECORDS
    assert sum(map(len, records.values())) <= MOST_PACKED
    lines = "".join(f"{name} {len(records[name]):07d}\n" for name in names)
    head = f"pack of {len(names):07d} records\n{lines}".encode()
    return f"{content_digest(head)}.pack{FORMAT}", head + b"".join(records[name] for name in names)


def read_index(path: Path) -> Index:
    """The index of a pack, which is read once per process.

    Raises:
        ValueError: it is damaged, or not a pack.
        OSError: it is missing, or may not be read.
    """
    found = path.stat()
    return _read_index(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=32)
def _read_index(path: Path, file: tuple[int, int, int]) -> Index:
    with open_regular(path) as pack:
        size = os.fstat(pack.fileno()).st_size
        expect(size <= MOST_FILE, f"it has {size:,} bytes, where at most {MOST_FILE:,} are expected")
        first = pack.read(FIRST_BYTES)
        match = FIRST.fullmatch(first)
        if match is None:
            raise ForeignError("its first line is not that of a pack")
        count = int(match[1])
        expect(0 < count <= MOST_RECORDS, f"it states {count:,} records, where at most {MOST_RECORDS:,} are expected")
        lines = pack.read(min(count * LINE_BYTES, size))
    expect(content_digest(first + lines) == path.name.partition(".")[0], "its index does not match its name")
    places, offset = {}, FIRST_BYTES + count * LINE_BYTES
    for name, text in LINE.findall(lines):
        places[name.decode()] = Place(offset, int(text))
        offset += int(text)
    expect(len(places) == count, f"it names {len(places):,} records, and states {count:,}")
    expect(all(place.size <= MOST_BYTES for place in places.values()), f"a record has more than {MOST_BYTES:,} bytes")
    expect(offset == size, f"it has {size:,} bytes, its index says {offset:,}")
    return _index(places)


def salvaged(path: Path, damage: str) -> Index:
    """The whole records of a damaged pack: those whose bytes and whose line in the index are as they were written.

    Raises:
        ValueError: it is not a file, or too large for a pack.
        OSError: it is missing, or may not be read.
    """
    content = read_small(path, MOST_FILE)
    lines = LINE.findall(content[: FIRST_BYTES + MOST_RECORDS * LINE_BYTES])
    named = {name[33:65].decode(): name.decode() for name, _ in lines}
    places, after = {}, 0
    for _ in range(2 * MOST_RECORDS):  # a stranger's file may end a record at every third byte
        end = content.find(END, after) + len(END)
        if end < len(END):
            break
        start = max(after, content.rfind(BEGIN, after, end) + 1)
        if end - start <= MOST_BYTES and (name := named.get(content_digest(content[start:end]))):
            places[name] = Place(start, end - start)
        after = end
    return _index(dict(sorted(places.items())), damage)


class Packs:
    """The packs of a storage, as they were listed last.

    Args:
        tell: called with a key, and a line, for each pack that is damaged.
    """

    def __init__(self, storage: Storage, tell: Callable[[str, str], None]) -> None:
        self.storage, self.tell = storage, tell
        self.found: dict[str, Index] = {}
        """File name of a pack → its index."""
        self._fetched: set[str] = set()
        """Packs that were fetched again from a bucket, because a record of this machine's copy is damaged."""

    def path(self, pack: str) -> Path:
        """Path of a pack on this machine."""
        return self.storage.root / PACKS / pack

    def names(self) -> Iterator[str]:
        """File names of all packed records; one that is in several packs is given several times."""
        for index in self.found.values():
            yield from index.places

    def of(self, digest: str) -> set[str]:
        """File names of the packed records of a digest."""
        return {name for index in self.found.values() for name in index.digests.get(digest, ())}

    def where(self, name: str) -> Path | None:
        """Path of a pack that has a record of this file name; None where none has it."""
        return next((self.path(pack) for pack, index in self.found.items() if name in index.places), None)

    def refresh(self) -> None:
        """List the packs again. StorageError where they cannot be read, NewerRecord where a newer pforce made one."""
        for left in reversed(range(TRIES)):
            try:
                listed = self._listed()
                self.found = {pack: self.found.get(pack) or self._opened(pack) for pack in listed}
                return
            except FileNotFoundError:  # merged into another one since they were listed
                if not left:
                    raise
            except PermissionError as error:
                raise StorageError(
                    f"--storage {self.storage}: its records cannot be read ({error.strerror}); check the permissions "
                    f"of {self.storage.root / PACKS}"
                ) from error

    def _listed(self) -> list[str]:
        found = []
        for name in sorted(self.storage.names(PACKS)):
            if match := PACK_NAME.fullmatch(name):
                if int(match["format"]) != FORMAT:
                    raise NewerRecord(
                        f"{self.path(name)}: is a pack of records of format {int(match['format'])}, this pforce reads "
                        f"{FORMAT}: a newer one made it. Install that one"
                    )
                found.append(name)
        return found

    def _opened(self, pack: str) -> Index:
        path = self.path(pack)
        try:
            return self.storage.read_checked(f"{PACKS}/{pack}", read_index)
        except PermissionError:
            raise
        except (ValueError, OSError) as error:
            _raise_gone(error)
            reason = printable(str(error))
        try:
            index = salvaged(path, reason)
        except (ValueError, OSError) as error:
            _raise_gone(error)
            index = _index({}, reason)
        self.tell(pack, f"{path}: {reason}; {len(index.places):,} records of this pack are whole, the others count as "
                        "missing, and their parts are measured again")  # fmt: skip
        return index

    def content(self, name: str) -> bytes | None:
        """The bytes of a record, which match its name; None where no pack has it. PackedError where all packs that have
        it are damaged there, StorageError where one may not be read."""
        for left in reversed(range(TRIES)):
            damage: PackedError | None = None
            try:
                for pack, index in self.found.items():
                    if name in index.places:
                        try:
                            return self._read(pack, name)
                        except PackedError as error:
                            damage = error
            except FileNotFoundError:  # merged into another one since it was listed
                if not left:
                    raise
                self.refresh()
                continue
            if damage is not None:
                raise damage
            return None
        raise AssertionError("the last try returns or raises")

    def _read(self, pack: str, name: str) -> bytes:
        path, place = self.path(pack), self.found[pack].places[name]
        try:
            content = self._bytes(path, place)
            if not _matches(content, name) and self.storage.remote and pack not in self._fetched:
                self._fetched.add(pack)
                self.storage.fetch(f"{PACKS}/{pack}", path)
                content = self._bytes(path, place)
        except PermissionError as error:
            raise StorageError(f"--storage {self.storage}: {path} may not be read ({error.strerror})") from error
        except (OSError, ValueError) as error:
            _raise_gone(error)
            raise PackedError(printable(str(error))) from error
        if not _matches(content, name):
            raise PackedError(f"record {name} is damaged: its content does not match its name")
        return content

    @staticmethod
    def _bytes(path: Path, place: Place) -> bytes:
        with open_regular(path) as file:
            return os.pread(file.fileno(), place.size, place.offset)

    def superseded(self) -> list[str]:
        """Packs all of whose records are whole in one larger pack: readers do not need them.

        A pack is never superseded by a smaller or an equal one. So of any number of processes that remove packs at the
        same time, none removes what another one relies on.
        """
        return [pack for pack in self.found if any(self._within(pack, other) for other in self.found)]

    def _within(self, pack: str, other: str) -> bool:
        names, larger = self.found[pack].places, self.found[other].places
        if self.found[pack].damage or not names.keys() < larger.keys():
            return False
        try:
            return all(_matches(self._bytes(self.path(other), larger[name]), name) for name in names)
        except (OSError, ValueError):  # damaged, or removed meanwhile
            return False


def _raise_gone(error: Exception) -> None:
    """Raise FileNotFoundError if the error says that a file was removed, on this machine or (ESTALE) another one."""
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE):
        raise FileNotFoundError(errno.ENOENT, "was removed") from error


def _matches(content: bytes, name: str) -> bool:
    return content_digest(content) == name[33:65]


def groups(sizes: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """The names, in their order, in groups that fit into a pack each."""
    group: list[str] = []
    total = 0
    for name, size in sizes:
        if group and (len(group) == MOST_RECORDS or total + size > MOST_PACKED):
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group
