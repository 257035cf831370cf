"""Atomic file writes, hashes of files and of data, and the folder of files that can be made again."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pforce.base.foreign import expect, kind_of, open_regular


def cache_folder() -> Path:
    """The cache folder: `$PFORCE_CACHE`, else `$XDG_CACHE_HOME/pforce`, else `~/.cache/pforce`."""
    if os.environ.get("PFORCE_CACHE"):
        return Path(os.environ["PFORCE_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "pforce"
    return Path.home() / ".cache" / "pforce"


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """The umask: permissions that this process withholds from new files. It is read from /proc, because the only other
    way, setting it, would change it for other threads for a moment."""
    for line in Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else ():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def give_by_umask(path: Path) -> None:
    """Give a new file the permissions that the umask leaves, whatever its writer gave it: safetensors gives 0600."""
    path.chmod(0o666 & ~umask())


def write_whole(path: Path, write: Callable[[Path], None], *, lasting: bool = True) -> None:
    """Write a file atomically: `write` it in a scratch folder beside `path`, flush it, rename it, flush the folder. It
    appears whole or not at all, and survives a power cut.

    Missing folders are made. A symbolic link at `path` is replaced, not followed; a folder, a pipe or a device there is
    left alone.

    Args:
        lasting: flush. Without it, a power cut may truncate the file: only for files that are checked when they are
            read and that can be made again.

    Raises:
        FileExistsError: `path` is neither a file nor a link.
        OSError: as the file system raises it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_replaceable(path)
    with tempfile.TemporaryDirectory(prefix=".tmp_", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        write(scratch)
        give_by_umask(scratch)
        if lasting:
            sync(scratch)
        scratch.replace(path)
    if lasting:
        sync(path.parent)


def check_replaceable(path: Path) -> None:
    """Raise FileExistsError where something other than a file or a link is at the path of a file to be written."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, f"is {kind_of(mode)}, not a file: it is not overwritten", str(path))


def write_bytes(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write bytes with `write_whole`."""

    def write(scratch: Path) -> None:
        scratch.write_bytes(content)

    write_whole(path, write, lasting=lasting)


def write_text(path: Path, text: str) -> None:
    """Write a text with `write_whole`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain data with `write_whole` as indented JSON, with null for a number that is not finite."""
    write_bytes(path, (json.dumps(strict(value), indent=1, allow_nan=False) + "\n").encode())


def read_small(path: Path, most: int) -> bytes:
    """The bytes of a small file. It does not block on a pipe, and does not read a file that is too large to be ours.

    Raises:
        ValueError: not a regular file, or more than `most` bytes.
        OSError: it is missing, or may not be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        expect(size <= most, f"it has {size:,} bytes, where at most {most:,} are expected")
        return file.read(most + 1)


def read_whole(path: Path) -> bytes:
    """The bytes of a file, however large. It does not block on a pipe.

    Raises:
        ValueError: not a regular file.
        OSError: it is missing, or may not be read.
    """
    with open_regular(path) as file:
        return file.read()


def folder_hash(folder: Path) -> str:
    """SHA-256, in hexadecimal, of the names and contents of all files below a folder. OSError where one cannot be
    read."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(os.fsencode(path.relative_to(folder)) + f"\x1f{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file's content. OSError where it cannot be read, ValueError where it is no file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(content: bytes) -> str:
    """32 hexadecimal digits that name bytes (blake2b, 128 bits)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest(kind: str, identity: Any) -> str:
    """32 hexadecimal digits that name plain data of a kind, whatever the order of its keys: the identity of all
    records.

    ValueError for a number that is not finite: JSON has none.
    """
    text = json.dumps({"kind": kind, "identity": identity}, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return content_digest(text.encode())


def strict(value: Any) -> Any:
    """Plain data that JSON can hold: tuples become lists, and numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
