"""Writing of a dataset's folder: deterministic webdataset shards, and a folder that appears whole or not at all.

Samples go to a temporary folder beside the destination, which is renamed when everything is on disk. So an interrupted
build leaves nothing at the destination, and of two simultaneous builders the second finds and uses the first one's
folder.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from webdataset import TarWriter

from pforce.base.files import sha256_of, sync
from pforce.data.manifest import Shard

STALE_AFTER_SECONDS = 24 * 3600
"""Seconds after which a temporary folder of another host counts as abandoned; one of this host does when its process
has ended."""


@dataclass(frozen=True)
class Sample:
    """One image as a shard holds it: `<key>.<extension>`, `<key>.cls`, `<key>.txt`."""

    key: str
    """Key, unique in the shard, without dots or slashes."""
    image: bytes
    """The encoded image file."""
    label: int
    caption: str
    extension: str = "png"


def write_shard(path: Path, samples: Iterable[Sample]) -> Shard:
    """Write one tar file and flush it to disk. The same samples give the same bytes: time, user, group and mode are
    fixed."""
    count = 0
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
        for sample in samples:
            tar.write(
                {
                    "__key__": sample.key,
                    sample.extension: sample.image,
                    "cls": str(sample.label).encode(),
                    "txt": sample.caption.encode(),
                }
            )
            count += 1
    sync(path)
    return Shard(name=path.name, samples=count, bytes=path.stat().st_size, sha256=sha256_of(path))


@contextmanager
def appearing_whole(destination: Path) -> Iterator[Path]:
    """A temporary folder to write into, renamed to `destination` when the block ends without an error.

    If the destination exists by then, another builder was faster: the temporary folder is removed, and the caller reads
    the destination. Folders left by dead builders are removed first.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}.partial-"
    _remove_stale(destination.parent, prefix)
    temporary = destination.parent / f"{prefix}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        sync(temporary)
        _rename_unless_there(temporary, destination)
        sync(destination.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is nothing to remove


def _rename_unless_there(source: Path, destination: Path) -> None:
    try:
        source.rename(destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_stale(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        host, _, rest = folder.name.removeprefix(prefix).rpartition("-")[0].rpartition("-")
        if host == socket.gethostname() and rest.isdecimal():
            stale = not _is_alive(int(rest))
        else:
            stale = _age_seconds(folder) > STALE_AFTER_SECONDS
        if stale:
            shutil.rmtree(folder, ignore_errors=True)  # another builder may be removing it too


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)  # signal 0 only checks
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process: alive
        return True
    return True


def _age_seconds(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:  # its builder has just finished
        return 0.0
