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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from webdataset import TarWriter

from pforce.base.files import sha256_of, sync
from pforce.data.manifest import Shard

STALE_AFTER_SECONDS = 900
"""Seconds without any change after which a temporary folder counts as abandoned. Neither a host's name nor a process's
number says more: two containers may have both in common."""


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
    temporary = destination.parent / f"{prefix}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir()
    _remove_stale(destination.parent, prefix, now=temporary.stat().st_mtime)
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


def _remove_stale(parent: Path, prefix: str, *, now: float) -> None:
    """Remove temporary folders in which nothing has changed for long.

    Args:
        now: the present by the clock of the folder's file system, in seconds since 1970.
    """
    for folder in parent.glob(f"{prefix}*"):
        if now - _changed(folder, now) > STALE_AFTER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)  # another builder may be removing it too


def _changed(folder: Path, now: float) -> float:
    """Time at which the folder or a file in it was last changed."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:  # its builder has just finished
        return now
