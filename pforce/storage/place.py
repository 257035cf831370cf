"""The storage of sweeps: a folder of this machine or of a network file system, or a bucket (S3, Google).

A bucket is worked on in a mirror, a folder of this machine: files are pulled into it before they are read and pushed
from it once they are whole. Nothing is locked: processes agree by files that are created exclusively.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlunsplit

from pforce.base.files import cache_folder, read_small, write_bytes
from pforce.storage.bucket import (
    ANSWER_SECONDS,
    CHECK_SECONDS,
    ConditionalWriteError,
    connect,
    delete_objects,
    download,
    link_file,
    put_if_absent,
    put_object,
    upload,
)
from pforce.storage.errors import StorageError, cause_of
from pforce.storage.uri import absolute, bucket_of, endpoint_of, shown, split, with_endpoint

T = TypeVar("T")

PAUSES_SECONDS = (1.0, 3.0)
"""Seconds between the attempts of a transfer."""


@dataclass(frozen=True)
class Storage:
    """A place for files. Names of files are relative to it, with `/`; methods raise StorageError, which names the
    storage."""

    uri: str = field(repr=False)
    """Absolute URI or path: `Storage.open` gives the same storage for it on every machine. It may hold credentials, so
    it is passed to processes but never shown to people."""
    root: Path
    """Folder of this machine: the storage itself, or its mirror."""
    remote: bool
    """Whether root is a mirror."""

    @classmethod
    def open(cls, text: str | Path) -> Storage:
        """The storage that a user names; nothing is written, and no server is contacted. StorageError where the text
        names no storage.

        A relative folder is one of the working directory; within a Ray job, whose directory is a copy that vanishes,
        one below `$PFORCE_STORAGE`.
        """
        text = absolute(str(text))
        if "://" not in text:
            if re.match(r"(s3|gs|gcs|file):", text):
                raise StorageError(f"--storage {text}: a URI has two slashes after its colon, as in s3://BUCKET/PREFIX")
            path = Path(text).absolute()
            return cls(str(path), path, remote=False)
        parts = split(text)
        if parts.scheme == "file":
            path = Path(unquote(parts.path)).absolute()
            return cls(str(path), path, remote=False)
        parts = with_endpoint(parts)
        name = f"{parts.scheme}://{bucket_of(parts)}{parts.path} {endpoint_of(parts)}"
        mirror = cache_folder() / "storage" / hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
        return cls(urlunsplit(parts), mirror.absolute(), remote=True)

    def __str__(self) -> str:
        """The URI without credentials."""
        return shown(split(self.uri)) if self.remote else self.uri

    def check(self) -> None:
        """Write, list, read and delete a small file. StorageError with the reason, within seconds."""
        if not self.remote:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=self.root):
                    pass
            except OSError as error:
                raise StorageError(
                    f"--storage {self}: cannot be written ({error.strerror}); give another folder"
                ) from error
            return
        from pyarrow.fs import FileSelector

        name = f".pforce_check_{uuid.uuid4().hex}"
        try:
            filesystem, prefix = connect(self.uri, CHECK_SECONDS, attempts=1)
            with filesystem.open_output_stream(f"{prefix}/{name}") as stream:
                stream.write(b"pforce")
            filesystem.get_file_info(FileSelector(prefix))
            with filesystem.open_input_stream(f"{prefix}/{name}") as stream:
                stream.read()
            filesystem.delete_file(f"{prefix}/{name}")
        except (OSError, ValueError) as error:  # pyarrow's, not chained: its text may hold credentials
            raise self._error("cannot be used", error) from None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"--storage {self}: its mirror on this machine, {self.root}, cannot be made ({error.strerror}); set "
                "PFORCE_CACHE to a folder that can be written"
            ) from error

    def list(self, relative: str) -> list[str]:
        """Names of all files of the bucket at or below a name, sorted. Empty for a local storage."""
        return sorted(self.sizes(relative)) if self.remote else []

    def sizes(self, relative: str) -> dict[str, int]:
        """Name → bytes of all files at or below a name; those in hidden folders of this machine (scratch) are left
        out."""
        if not self.remote:
            return dict(_sizes_below(self.root, relative))
        from pyarrow.fs import FileSelector, FileType

        def found(filesystem: Any, prefix: str) -> dict[str, int]:
            path = f"{prefix}/{relative}"
            there = filesystem.get_file_info(path)
            infos = [there]
            if there.type == FileType.Directory:
                infos = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            return {info.path[len(prefix) + 1 :]: info.size for info in infos if info.type == FileType.File}

        return self._try(f"{relative} cannot be listed", found)

    def read(self, relative: str) -> bytes | None:
        """Content of a small file of the bucket; None where it is not there, and for a local storage."""
        if not self.remote or relative not in self.list(relative):
            return None

        def content(filesystem: Any, prefix: str) -> bytes | None:
            try:
                with filesystem.open_input_stream(f"{prefix}/{relative}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:  # removed since it was listed
                return None

        return self._try(f"{relative} cannot be read", content)

    def pull(self, relative: str) -> bool:
        """Copy a file, or all files below a folder, into the mirror, and return whether there were any; each appears
        whole.

        For a local storage, only return whether it is there.
        """
        if not self.remote:
            return (self.root / relative).exists()
        names = self.list(relative)
        for name in names:
            self.fetch(name, self.root / name)
        return bool(names)

    def fetch(self, name: str, path: Path) -> None:
        """Copy one file of the bucket to a path, where it appears whole. FileNotFoundError where the bucket has none of
        that name."""

        def copied(filesystem: Any, prefix: str) -> bool:
            try:
                download(name, path, filesystem, prefix)
            except FileNotFoundError as error:
                if error.filename is None:  # pyarrow's: the object is not there
                    return False
                raise
            return True

        if not self._try(f"{name} cannot be read", copied):
            raise FileNotFoundError(errno.ENOENT, f"is not in {self}", name)

    def read_checked(self, name: str, checked: Callable[[Path], T]) -> T:
        """The result of `checked`, called with the path of a file, or its error. Where the mirror's copy is missing or
        `checked` refuses it, the bucket's is fetched, once."""
        path = self.root / name
        if self.remote:
            if path.exists():
                with suppress(OSError, ValueError, KeyError, EOFError):
                    return checked(path)
            self.fetch(name, path)
        return checked(path)

    def has(self, name: str) -> bool:
        """Whether a file is there; a bucket itself is asked, not its mirror."""
        return name in self.list(name) if self.remote else (self.root / name).exists()

    def push(self, relative: str, *, last: str | None = None, skip: Iterable[str] = ()) -> None:
        """Copy a file, or all files below a folder, from the mirror to the bucket. Does nothing for a local storage.

        Hidden files (locks, scratch files) are left out.

        Args:
            last: name of the file that is copied last: where it is there, the folder is whole.
            skip: names of files and folders, at any depth, to leave out.
        """
        if not self.remote:
            return
        path = self.root / relative
        files = [path] if path.is_file() else [each for each in sorted(path.rglob("*")) if each.is_file()]
        left_out = set(skip)
        for each in sorted(files, key=lambda file: file.name == last):
            parts = each.relative_to(path).parts
            if not any(part.startswith(".") or part in left_out for part in parts):
                name = PurePosixPath(each.relative_to(self.root)).as_posix()
                self._try(f"{name} cannot be written", functools.partial(upload, each, name))

    # --- small files by which processes agree -----------------------------------------------------------------

    def names(self, folder: str) -> Sequence[str]:
        """Names of the files in a folder of the storage, a bucket or not."""
        if self.remote:
            return [name.rpartition("/")[2] for name in self.list(folder)]
        try:
            return [entry.name for entry in os.scandir(self.root / folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def content(self, relative: str, most: int) -> bytes | None:
        """A small file's bytes, read from a bucket itself, not its mirror; None where the file is not there.

        Args:
            most: largest size in bytes; None is returned for a larger file, and for what is not a file.
        """
        if self.remote:
            found = self.read(relative)
            return found if found is None or len(found) <= most else None
        try:
            return read_small(self.root / relative, most)
        except (OSError, ValueError):
            return None

    def put(self, relative: str, content: bytes) -> None:
        """Write a small file, to a bucket itself, not its mirror; it appears whole."""
        if self.remote:
            self._try(f"{relative} cannot be written", functools.partial(put_object, content, relative))
        else:
            write_bytes(self.root / relative, content, lasting=False)

    def create(self, relative: str, content: bytes) -> bool:
        """Write a small file unless one is there, and return whether it was written: of several processes that try at
        once, one wins.

        `content` must be unique to the caller: where the answer is an error or is lost, the existing file is compared
        with it.

        Where a bucket supports no conditional writes, a warning says so and the file is written all the same.

        Raises:
            StorageError: the bucket does not answer.
            OSError: the folder cannot be written.
        """
        if not self.remote:
            return link_file(self.root / relative, content)
        try:
            put_if_absent(self.uri, relative, content)
        except ConditionalWriteError as error:
            there = self.read(relative)
            if there is not None:
                return there == content
            warnings.warn(
                f"--storage {self}: takes no conditional writes ({error}), so commands that run at once may do the "
                "same work twice; give it one at a time",
                stacklevel=2,
            )
            self.put(relative, content)
        return True

    def remove(self, relative: str) -> None:
        """Delete a small file, from a bucket itself, not its mirror."""
        if self.remote:
            self.delete(relative)
        else:
            (self.root / relative).unlink(missing_ok=True)

    def discard(self, names: Sequence[str]) -> None:
        """Delete many files, those of a bucket by few requests, and their copies in the mirror; some may be gone
        already."""
        if self.remote and not delete_objects(self.uri, names):
            for name in names:
                self.delete(name)
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def leave(self, folder: str) -> None:
        """Remove a folder if it is empty now, and those above it; a bucket has no folders."""
        if not self.remote:
            with suppress(OSError):  # another process has just put a file into it
                os.removedirs(self.root / folder)

    def delete(self, relative: str) -> None:
        """Delete a file, or all files below a folder, from the bucket. Does nothing where there are none or the storage
        is local."""
        for name in self.list(relative):

            def gone(filesystem: Any, prefix: str, name: str = name) -> None:
                filesystem.delete_file(f"{prefix}/{name}")

            self._try(f"{name} cannot be deleted", gone)

    def _try(self, failed: str, action: Callable[[Any, str], T]) -> T:
        """Carry out an action; retry it after a pause where it fails for a reason that may pass."""
        for pause in (*PAUSES_SECONDS, None):
            try:
                return action(*connect(self.uri, ANSWER_SECONDS, attempts=2))
            except (OSError, ValueError) as error:
                if pause is None or cause_of(error).lasting:
                    raise self._error(failed, error) from None
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _error(self, failed: str, error: Exception) -> StorageError:
        cause, parts = cause_of(error), split(self.uri)
        where = endpoint_of(parts) or ("Amazon S3" if parts.scheme == "s3" else "Google Cloud Storage")
        return StorageError(f"--storage {self}: {failed}: " + cause.sentence(bucket_of(parts), where))


def _sizes_below(root: Path, relative: str) -> Iterator[tuple[str, int]]:
    """(name, bytes) of the files below a folder. Files that vanish meanwhile are left out."""
    try:
        entries = list(os.scandir(root / relative))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = f"{relative}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith("."):
                yield from _sizes_below(root, name)
        else:
            with suppress(FileNotFoundError):
                yield name, entry.stat(follow_symlinks=False).st_size
