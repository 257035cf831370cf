"""Connections to buckets, and single atomic operations in them and in a folder."""

from __future__ import annotations

import errno
import functools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlunsplit

from pforce.base.files import umask, write_whole
from pforce.storage.uri import bucket_of, split

CHECK_SECONDS = 5
"""Seconds that a check waits for an answer."""
ANSWER_SECONDS = 20
"""Seconds that one attempt of a transfer waits for an answer."""
MOST_DELETED = 1000
"""Most objects that one request deletes (S3's own limit)."""


@functools.lru_cache(maxsize=16)
def connect(uri: str, seconds: int, *, attempts: int) -> tuple[Any, str]:
    """pyarrow's file system of a bucket and the prefix in it. OSError and ValueError as pyarrow raises them.

    Args:
        seconds: seconds to wait for a server that does not answer.
        attempts: attempts per request.
    """
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

    parts = split(uri)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "gs":
        query.setdefault("retry_limit_seconds", str(seconds))
        return FileSystem.from_uri(urlunsplit(parts._replace(query=urlencode(query))))
    found, prefix = FileSystem.from_uri(uri)
    # Made again with timeouts, which a URI cannot carry: without them a silent server would be waited for forever.
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


def download(name: str, path: Path, filesystem: Any, prefix: str) -> None:
    """Fetch a file of a bucket to a path, where it appears whole."""
    from pyarrow.fs import LocalFileSystem, copy_files

    def copy(scratch: Path) -> None:
        copy_files(f"{prefix}/{name}", str(scratch), filesystem, LocalFileSystem())

    write_whole(path, copy)


def upload(path: Path, name: str, filesystem: Any, prefix: str) -> None:
    """Send a file to a bucket, where it appears whole."""
    # Not through a stream of our own: closing one after an error would leave half an object under its full name.
    from pyarrow.fs import LocalFileSystem, copy_files

    copy_files(str(path), f"{prefix}/{name}", LocalFileSystem(), filesystem)


def put_object(content: bytes, name: str, filesystem: Any, prefix: str) -> None:
    """Write an object; one of that name is replaced."""
    with filesystem.open_output_stream(f"{prefix}/{name}") as stream:
        stream.write(content)


def link_file(path: Path, content: bytes) -> bool:
    """Create a file with this content unless one exists, and return whether it was created. Atomic also on network file
    systems, because a hard link is either made or refused."""
    for left in reversed(range(10)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".tmp_", dir=path.parent)
            break
        except FileNotFoundError:  # another process has just removed the empty folder, or one above it
            if not left:
                raise
    scratch = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o666 & ~umask())  # others who share the storage may read it
        try:
            os.link(scratch, path)
        except OSError as error:
            # Where the answer is lost, the file system's client asks again and finds the link that it made itself.
            if scratch.stat().st_nlink == 2:  # the scratch file and the link
                return True
            if isinstance(error, FileExistsError):
                return False
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            return create_file(path, content)
    finally:
        scratch.unlink(missing_ok=True)
    return True


def create_file(path: Path, content: bytes) -> bool:
    """`link_file` on a file system without hard links, where a reader may see the file before its content."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


class ConditionalWriteError(Exception):
    """A conditional write was refused, or its answer was lost. Handled within this package."""


def put_if_absent(uri: str, name: str, content: bytes) -> None:
    """Write an object unless one of that name exists. ConditionalWriteError where that fails, for whatever reason."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        store, prefix = object_store(uri)
        obstore.put(store, f"{prefix}{name}", content, mode="create")
    except (BaseError, OSError, ValueError) as error:  # the message may hold credentials: only its type is kept
        raise ConditionalWriteError(type(error).__name__) from None


def delete_objects(uri: str, names: Sequence[str]) -> bool:
    """Delete objects by as few requests as the server allows, and return whether that worked: some may remain where it
    did not."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        store, prefix = object_store(uri)
        for first in range(0, len(names), MOST_DELETED):
            obstore.delete(store, [f"{prefix}{name}" for name in names[first : first + MOST_DELETED]])
    except (BaseError, OSError, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=16)
def object_store(uri: str) -> tuple[Any, str]:
    """obstore's bucket and the prefix in it, which ends with a slash."""
    from obstore.store import GCSStore, S3Store

    parts = split(uri)
    query = dict(parse_qsl(parts.query))
    prefix = parts.path.strip("/")
    prefix = f"{prefix}/" if prefix else ""
    client: Any = {"timeout": f"{ANSWER_SECONDS}s", "connect_timeout": f"{CHECK_SECONDS}s"}
    if parts.scheme in ("gs", "gcs"):
        return GCSStore(bucket_of(parts), client_options=client), prefix
    options: dict[str, Any] = {"virtual_hosted_style_request": False}
    region = query.get("region") or getattr(connect(uri, ANSWER_SECONDS, attempts=2)[0], "region", "")
    if region:
        options["region"] = region
    if parts.username:
        options |= {"access_key_id": unquote(parts.username), "secret_access_key": unquote(parts.password or "")}
    endpoint = query.get("endpoint_override")
    if endpoint:
        scheme = query.get("scheme", "https")
        options["endpoint"] = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
        client["allow_http"] = scheme == "http" or endpoint.startswith("http://")
    return S3Store(bucket_of(parts), client_options=client, **options), prefix
