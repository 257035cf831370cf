"""Files that appear whole or not at all, and where files lie that can be made again."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """`$PFORCE_CACHE`, else `$XDG_CACHE_HOME/pforce`, else `~/.cache/pforce`."""
    if os.environ.get("PFORCE_CACHE"):
        return Path(os.environ["PFORCE_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "pforce"
    return Path.home() / ".cache" / "pforce"


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """`write` a file in a scratch folder beside `path`, flush it, rename it: it appears whole or not at all.

    Missing folders are made. OSError as the file system raises it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp_", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        write(scratch)
        descriptor = os.open(scratch, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        scratch.replace(path)


def folder_hash(folder: Path) -> str:
    """Hash of the names and contents of all files below a folder. OSError where one cannot be read."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\x1f{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Hash of a file's content. OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strict(value: Any) -> Any:
    """Plain data as JSON takes them: what is not a finite number is null, as JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
