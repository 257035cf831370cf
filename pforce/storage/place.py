"""Where sweeps keep their files: a folder of this machine or of a network file system, or a bucket (S3, Google).

A bucket is worked on in a mirror, a folder of this machine: files are pulled into it before they are read and pushed
from it once they are whole. Nothing locks a bucket: two drivers that train the same cell at once both pay for it.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urlunsplit

from pforce.files import cache_folder, write_whole
from pforce.storage.errors import StorageError, cause_of
from pforce.storage.uri import absolute, bucket_of, endpoint_of, shown, split, with_endpoint

T = TypeVar("T")

CHECK_SECONDS = 5
"""How long a check waits for an answer."""
ANSWER_SECONDS = 20
"""The same of transfers, which are tried again."""
PAUSES_SECONDS = (1.0, 3.0)
"""Between the tries of a transfer."""


@dataclass(frozen=True)
class Storage:
    """A place for files. Names below it are relative, with `/`; methods raise StorageError, which names it."""

    uri: str = field(repr=False)
    """Absolute: `Storage.open` gives the same storage on every machine. May hold credentials: for other processes,
    never for people."""
    root: Path
    """Folder of this machine: the storage itself, or its mirror."""
    remote: bool
    """Whether root is a mirror."""

    @classmethod
    def open(cls, text: str | Path) -> Storage:
        """The storage that a user names; nothing is written, and nobody is asked. StorageError where it is none.

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
        """The URI as people may see it."""
        return shown(split(self.uri)) if self.remote else self.uri

    def check(self) -> None:
        """Write, list, read and delete a small file. StorageError with the reason within seconds."""
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
            filesystem, prefix = _connect(self.uri, CHECK_SECONDS, attempts=1)
            with filesystem.open_output_stream(f"{prefix}/{name}") as stream:
                stream.write(b"pforce")
            filesystem.get_file_info(FileSelector(prefix))
            with filesystem.open_input_stream(f"{prefix}/{name}") as stream:
                stream.read()
            filesystem.delete_file(f"{prefix}/{name}")
        except (OSError, ValueError) as error:  # of pyarrow; without it as context: it may tell the credentials
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
        if not self.remote:
            return []
        from pyarrow.fs import FileSelector, FileType

        def found(filesystem: Any, prefix: str) -> list[str]:
            path = f"{prefix}/{relative}"
            there = filesystem.get_file_info(path)
            infos = [there]
            if there.type == FileType.Directory:
                infos = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            return sorted(info.path[len(prefix) + 1 :] for info in infos if info.type == FileType.File)

        return self._try(f"{relative} cannot be listed", found)

    def read(self, relative: str) -> bytes | None:
        """A small file of the bucket; None where it is not there, and for a local storage."""
        if not self.remote or relative not in self.list(relative):
            return None

        def content(filesystem: Any, prefix: str) -> bytes:
            with filesystem.open_input_stream(f"{prefix}/{relative}") as stream:
                return bytes(stream.read())

        return self._try(f"{relative} cannot be read", content)

    def pull(self, relative: str) -> bool:
        """Copy a file, or all files below a folder, into the mirror; each appears whole. Whether there were any.

        Does nothing for a local storage, and says whether it is there.
        """
        if not self.remote:
            return (self.root / relative).exists()
        names = self.list(relative)
        for name in names:
            self.fetch(name, self.root / name)
        return bool(names)

    def fetch(self, name: str, path: Path) -> None:
        """Copy one file of the bucket to a path, where it appears whole."""
        self._try(f"{name} cannot be read", functools.partial(_download, name, path))

    def read_checked(self, name: str, checked: Callable[[Path], T]) -> T:
        """What `checked` makes of a file; it raises what it raises. Where the mirror's copy is missing or refused, the
        bucket's is fetched, once."""
        path = self.root / name
        if self.remote:
            if path.exists():
                with suppress(OSError, ValueError, KeyError, EOFError):
                    return checked(path)
            self.fetch(name, path)
        return checked(path)

    def has(self, name: str) -> bool:
        """Whether a file is there: in the bucket itself, where it is one."""
        return name in self.list(name) if self.remote else (self.root / name).exists()

    def push(self, relative: str, *, last: str | None = None, skip: Iterable[str] = ()) -> None:
        """Copy a file, or all files below a folder, from the mirror. Does nothing for a local storage.

        Hidden files (locks, scratch files) are left out.

        Args:
            last: name of the file that is copied last: where it is, the folder is whole.
            skip: names of files and folders, at any depth, that are left out.
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
                self._try(f"{name} cannot be written", functools.partial(_upload, each, name))

    def delete(self, relative: str) -> None:
        """Delete a file, or all below a folder, from the bucket. Nothing where it is not there or the storage local."""
        for name in self.list(relative):

            def gone(filesystem: Any, prefix: str, name: str = name) -> None:
                filesystem.delete_file(f"{prefix}/{name}")

            self._try(f"{name} cannot be deleted", gone)

    def _try(self, failed: str, action: Callable[[Any, str], T]) -> T:
        """Carry out, again after a pause where it fails for a reason that may pass."""
        for pause in (*PAUSES_SECONDS, None):
            try:
                return action(*_connect(self.uri, ANSWER_SECONDS, attempts=2))
            except (OSError, ValueError) as error:
                if pause is None or cause_of(error).lasting:
                    raise self._error(failed, error) from None
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _error(self, failed: str, error: Exception) -> StorageError:
        cause, parts = cause_of(error), split(self.uri)
        where = endpoint_of(parts) or ("Amazon S3" if parts.scheme == "s3" else "Google Cloud Storage")
        return StorageError(f"--storage {self}: {failed}: " + cause.sentence(bucket_of(parts), where))


@functools.lru_cache(maxsize=16)
def _connect(uri: str, seconds: int, *, attempts: int) -> tuple[Any, str]:
    """pyarrow's file system and the prefix in it. OSError and ValueError as pyarrow raises them.

    Args:
        seconds: that a silent server is waited for. attempts: of each request.
    """
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

    parts = split(uri)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "gs":
        query.setdefault("retry_limit_seconds", str(seconds))
        return FileSystem.from_uri(urlunsplit(parts._replace(query=urlencode(query))))
    found, prefix = FileSystem.from_uri(uri)
    # Made again with limits of time, which a URI cannot carry: without them a silent server is waited for without end.
    options: dict[str, Any] = {**query, "region": found.region or None}
    if "allow_bucket_creation" in query:
        options["allow_bucket_creation"] = query["allow_bucket_creation"].lower() in ("true", "1")
    if parts.username:
        options |= {"access_key": unquote(parts.username), "secret_key": unquote(parts.password or "")}
    filesystem = S3FileSystem(
        connect_timeout=CHECK_SECONDS,
        request_timeout=seconds,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=attempts),
        **options,
    )
    return filesystem, prefix


def _download(name: str, path: Path, filesystem: Any, prefix: str) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    def copy(scratch: Path) -> None:
        copy_files(f"{prefix}/{name}", str(scratch), filesystem, LocalFileSystem())

    write_whole(path, copy)


def _upload(path: Path, name: str, filesystem: Any, prefix: str) -> None:
    # Not through a stream of our own: closing one after an error would leave half an object under its full name.
    from pyarrow.fs import LocalFileSystem, copy_files

    copy_files(str(path), f"{prefix}/{name}", LocalFileSystem(), filesystem)
