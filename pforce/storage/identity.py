"""The identity of a storage, whatever its folder is called: a number in `storage.json`."""

from __future__ import annotations

import json
import re
import uuid

from pforce.base.files import read_small, write_bytes
from pforce.base.foreign import parse_object, quoted
from pforce.storage.errors import StorageError
from pforce.storage.place import Storage

FILE = "storage.json"
FORMAT = 1
PACKED = 2
"""Format of the file in a storage that has packs of records. Versions that cannot read packs know format 1 only, and so
refuse the storage when they would show it to MLflow, instead of taking it for empty."""
MOST_BYTES = 1 << 16


def identity_of(storage: Storage) -> str:
    """The storage's identity: 32 hexadecimal digits, made at the first call; a storage that is moved or copied keeps
    them. StorageError where the file is damaged or cannot be written."""
    content = storage.content(FILE, MOST_BYTES)
    if content is None:
        # The identity of a bucket that lost its content is still in this machine's mirror.
        made = _kept(storage) or json.dumps({"format": FORMAT, "id": uuid.uuid4().hex}).encode() + b"\n"
        try:
            storage.create(FILE, made)
        except OSError as error:
            raise StorageError(
                f"--storage {storage}: {FILE} cannot be written ({error.strerror}); check the permissions of "
                f"{storage.root}"
            ) from error
        content = storage.content(FILE, MOST_BYTES)  # of several processes that make it at once, one wins
    try:
        found = parse_object(content or b"")
        kind, text = found["format"], found["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        kind, text = None, ""
    if kind not in (FORMAT, PACKED) or not re.fullmatch("[0-9a-f]{32}", str(text)):
        if kind not in (None, FORMAT, PACKED):
            raise StorageError(
                f"--storage {storage}: {FILE} is of format {quoted(kind)}, this version reads {FORMAT} and {PACKED}: a "
                "newer pforce made it. Install that one"
            )
        raise StorageError(
            f"--storage {storage}: {FILE} {'cannot be read' if content is None else 'is damaged'}. It only names the "
            "storage to MLflow: move it away, and its runs are shown once more, as another storage's"
        )
    if storage.remote and _kept(storage) != content and content is not None:
        write_bytes(storage.root / FILE, content)
    return str(text)


def mark_packed(storage: Storage) -> None:
    """Note in the storage's file that it has packs, before it has the first. StorageError as from `identity_of`."""
    content = json.dumps({"format": PACKED, "id": identity_of(storage)}).encode() + b"\n"
    if storage.content(FILE, MOST_BYTES) != content:
        try:
            write_bytes(storage.root / FILE, content)
        except OSError as error:
            raise StorageError(f"--storage {storage}: {FILE} cannot be written ({error.strerror})") from error
        storage.push(FILE)


def _kept(storage: Storage) -> bytes | None:
    """Content of the file in a bucket's mirror; None where there is none."""
    try:
        return read_small(storage.root / FILE, MOST_BYTES) if storage.remote else None
    except (OSError, ValueError):
        return None
