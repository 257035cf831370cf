"""Packing: records in files of their own are written into packs, and their own files removed.

Nothing here locks, and readers, writers and other packers go on meanwhile. Two rules keep every record: a pack is
written, synced and read before anything that it replaces is removed, and a pack is removed only where one larger
pack has all of it. A process that is killed leaves records in two places, which the next call finds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from pforce.base.files import read_small, read_whole, write_bytes
from pforce.records.ledger import RECORDS
from pforce.records.packs import MOST_PACKED, MOST_RECORDS, PACK_NAME, PACKS, Packs, groups, pack_of
from pforce.records.record import MOST_BYTES, NAME, RecordError, parse
from pforce.storage import Storage, StorageError
from pforce.storage.identity import mark_packed

MANY = 8
"""Number of packs, each less than half full, from which they are merged."""
SETTLE_SECONDS = 65.0
"""Pause between the last pack's writing and the first removal on a file system that other machines may share: NFS
shows a machine a folder as it was up to 60 s ago, so it could see neither the file nor the pack."""
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay")
"""File systems of one machine, or whose folders are never shown as they were before."""
AT_ONCE = 16
"""Records that are fetched from a bucket at the same time."""
Say = Callable[[str], None]
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows what is done and how much of it there is, and gives a function to call with how much is done."""


@dataclass(frozen=True)
class Amount:
    """The files of a storage's records: those of single records, and packs."""

    loose: int
    packs: int
    bytes: int

    @classmethod
    def of(cls, storage: Storage) -> Amount:
        """What is there now."""
        return cls.count(storage.sizes(RECORDS))

    @classmethod
    def count(cls, sizes: Mapping[str, int]) -> Amount:
        """The amount of these files.

        Args:
            sizes: name below the storage → bytes.
        """
        kinds = {name: (_is_loose(name), _is_pack(name)) for name in sizes}
        loose, packs = (sum(kind[number] for kind in kinds.values()) for number in (0, 1))
        return cls(loose, packs, sum(size for name, size in sizes.items() if any(kinds[name])))


@dataclass
class Packing:
    """What a call did, or would do."""

    before: Amount
    after: Amount
    records: int = 0
    """Number of records that were written into packs."""
    young: int = 0
    """Number of records that are too young, and stay as they are."""
    left: int = 0
    """Number of files that hold no record that this version would write (damaged, or newer), and stay as they are."""
    merged: int = 0
    """Number of packs that were replaced by a larger one."""


def pack(
    storage: Storage,
    say: Say,
    *,
    older_than: float = 3600.0,
    dry_run: bool = False,
    settle: float | None = None,
    bar: Bar = lambda what, total: nullcontext(lambda done: None),
) -> Packing:
    """Write records into packs and remove their own files.

    Args:
        older_than: least age, in seconds since its part was finished, of a record that is packed.
        dry_run: change nothing.
        settle: seconds between writing and removing; None: SETTLE_SECONDS where other machines may share the file
            system, else 0.

    Raises:
        StorageError: the storage cannot be read or written.
        NewerRecord: it has packs of a newer pforce.
    """
    sizes = storage.sizes(RECORDS)
    packs = Packs(storage, lambda key, line: say(line))
    packs.refresh()
    done = Packing(Amount.count(sizes), Amount.count(sizes))
    loose = sorted((name.rpartition("/")[2], size) for name, size in sizes.items() if _is_loose(name))
    with bar("reading records", len(loose)) as advance:
        replaced = _write(storage, packs, loose, done, time.time() - older_than, dry_run=dry_run, advance=advance)
    if dry_run:
        done.after = Amount(done.before.loose - len(replaced), done.before.packs, done.before.bytes)
        return done
    _merge(storage, packs)
    gone = packs.superseded()
    done.merged = len(gone)
    names = [f"{RECORDS}/{name[:2]}/{name}" for name in replaced if _is_packed(packs, name)]
    names += [f"{PACKS}/{name}" for name in gone]
    if names:
        _pause(storage, settle, bar)
        with bar("removing files that are packed", len(names)) as advance:
            _remove(storage, names, advance)
    done.after = Amount.of(storage)
    return done


def _write(
    storage: Storage,
    packs: Packs,
    loose: Sequence[tuple[str, int]],
    done: Packing,
    limit: float,
    *,
    dry_run: bool,
    advance: Callable[[int], None],
) -> list[str]:
    """Write packs of those records that are old enough; returns the file names of all that are whole in a pack."""
    replaced: list[str] = []
    for group in groups(loose):
        chosen: dict[str, bytes] = {}
        for number, name in enumerate(_fetched(storage, group), start=1):
            if number % 100 == 0:
                advance(done.young + done.left + len(replaced) + len(chosen))
            if _is_packed(packs, name):  # a call was stopped before it removed the file
                replaced.append(name)
                continue
            content = _content(storage, name, limit, done)
            if content is not None:
                chosen[name] = content
        if chosen:
            done.records += len(chosen)
            if not dry_run:
                _keep(storage, chosen)
            replaced += chosen
    return replaced


def _is_packed(packs: Packs, name: str) -> bool:
    """Whether a record is whole in a pack."""
    try:
        return packs.content(name) is not None
    except RecordError:
        return False


def _content(storage: Storage, name: str, limit: float, done: Packing) -> bytes | None:
    """The bytes of a record's own file; None, and counted, where it is not to be packed."""

    def checked(path: Path) -> tuple[bytes, float]:
        content = read_small(path, MOST_BYTES)
        record = parse(content, name)
        if record.to_bytes() != content:  # a pack is searched by the form that this version writes
            raise RecordError(f"record {name}: was not written by pforce")
        return content, record.finished

    try:
        content, finished = storage.read_checked(f"{RECORDS}/{name[:2]}/{name}", checked)
    except FileNotFoundError:  # another process has just packed it
        return None
    except (ValueError, OSError):
        done.left += 1
        return None
    if finished > limit:
        done.young += 1
        return None
    return content


def _keep(storage: Storage, records: Mapping[str, bytes]) -> None:
    """Write a pack, and read it back where it is still there: another process may have merged it at once. One of the
    same records is the same file: it is written anew."""
    name, content = pack_of(records)
    relative = f"{PACKS}/{name}"
    mark_packed(storage)
    try:
        write_bytes(storage.root / relative, content)
        storage.push(relative)
        there: bytes | None = None
        with suppress(FileNotFoundError):
            there = storage.read(relative) if storage.remote else read_whole(storage.root / relative)
    except OSError as error:
        raise StorageError(
            f"--storage {storage}: a pack cannot be written ({error.strerror}); no record was removed. It needs room "
            f"for {len(content):,} bytes and three more files"
        ) from error
    if there not in (None, content):
        raise StorageError(f"--storage {storage}: {relative} was read back with another content; no record was removed")


def _merge(storage: Storage, packs: Packs) -> None:
    """Merge packs that are less than half full, where there are many: the smallest, as many as fit into one pack."""
    packs.refresh()
    found = dict(packs.found)  # the list may be read again below, when others are merging, too
    sizes = {
        pack: sum(place.size for place in index.places.values())
        for pack, index in found.items()
        if not index.damage and 2 * len(index.places) < MOST_RECORDS
    }
    small = sorted((pack for pack, size in sizes.items() if 2 * size < MOST_PACKED), key=lambda pack: sizes[pack])
    if len(small) < MANY:
        return
    records: dict[str, bytes] = {}
    total = 0
    for each in small:
        total += sizes[each]
        if total > MOST_PACKED or len(records) + len(found[each].places) > MOST_RECORDS:
            break
        with suppress(RecordError):  # a damaged pack stays as it is
            content = {name: packs.content(name) for name in found[each].places}
            records.update({name: whole for name, whole in content.items() if whole is not None})
    if records:
        _keep(storage, records)
    packs.refresh()


def _fetched(storage: Storage, names: Sequence[str]) -> Iterator[str]:
    """The names, each after its record was copied from a bucket, several at a time."""

    def fetch(name: str) -> None:
        path = storage.root / RECORDS / name[:2] / name
        if not path.exists():
            with suppress(FileNotFoundError):  # another process has just packed it
                storage.fetch(f"{RECORDS}/{name[:2]}/{name}", path)

    if not storage.remote:
        yield from names
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for first in range(0, len(names), 16 * AT_ONCE):
            several = names[first : first + 16 * AT_ONCE]
            list(pool.map(fetch, several))
            yield from several


def _pause(storage: Storage, settle: float | None, bar: Bar) -> None:
    if settle is None:
        settle = 0.0 if storage.remote or file_system(storage.root) in LOCAL else SETTLE_SECONDS
    if settle:
        with bar("waiting until other machines see the packs", round(settle)) as advance:
            started = time.monotonic()
            while (passed := time.monotonic() - started) < settle:
                advance(round(passed))
                time.sleep(min(1.0, settle - passed))


def _remove(storage: Storage, names: Sequence[str], advance: Callable[[int], None]) -> None:
    for first in range(0, len(names), 1000):
        try:
            storage.discard(names[first : first + 1000])
        except OSError as error:
            raise StorageError(
                f"--storage {storage}: {error.filename} cannot be removed ({error.strerror}). It is in a pack, too; "
                "whoever may remove it calls this command again"
            ) from error
        advance(first + 1000)


def file_system(path: Path) -> str:
    """Kind of the file system that a path lies on, as Linux names it; empty where that is unknown."""
    best, kind = b"", ""
    own = os.fsencode(os.path.realpath(path)) + b"/"
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines() if Path("/proc/self/mountinfo").exists() else ():
        fields, _, rest = line.partition(b" - ")
        escaped = fields.split()[4].rstrip(b"/") + b"/"
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), escaped)
        if own.startswith(point) and len(point) >= len(best):
            best, kind = point, rest.split()[0].decode()
    return kind


def _is_loose(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    match = NAME.fullmatch(file)
    return match is not None and folder == f"{RECORDS}/{file[:2]}"


def _is_pack(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder == PACKS and PACK_NAME.fullmatch(file) is not None
