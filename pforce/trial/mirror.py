"""The copy of a training's folder in a bucket: a machine pulls from it before it works, and pushes whole checkpoints to
it.

A checkpoint's tensors are uploaded first and its `meta.json` last, so that half an upload never counts as whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from pforce.base.files import read_small, sha256_of
from pforce.storage import Storage, StorageError
from pforce.training.checkpoint import (
    CHECKPOINTS,
    KEPT,
    META,
    MOMENTS,
    MOST_META_BYTES,
    SNAPSHOTS,
    STATE,
    CheckpointError,
    parse_meta,
)
from pforce.training.curve import CURVE

LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class TrialMirror:
    """Keeps a training's folder equal here and in a bucket (a `pforce.training.callbacks.Mirror`)."""

    def __init__(self, storage: Storage, relative: str, about: str) -> None:
        """
        Args:
            relative: the training's folder below the storage's root.
            about: name of the file in it that describes the training; it is uploaded with every checkpoint.
        """
        self.storage, self.relative, self.about = storage, relative, about
        self.folder = storage.root / relative
        self.failed: set[Path] = set()
        """Paths that could not be uploaded, to be retried."""

    # --- from the bucket -------------------------------------------------------------------------------------

    def pull(self, at_most: int) -> None:
        """Pull the curve, and the resumable checkpoint with the most images seen up to `at_most`. StorageError where
        the bucket cannot be read."""
        for name in self.storage.list(f"{self.relative}/{CURVE}"):
            if not (self.storage.root / name).exists():
                self.storage.fetch(name, self.storage.root / name)
        found = []
        for path, files in self._saved().items():
            if {STATE, META} <= files and (meta := self._remote_meta(path)) is not None:
                resumable = meta[1]["resumable"] and set(meta[1]["files"]) <= files
                if resumable and meta[1]["images_seen"] <= at_most:
                    found.append((meta[1]["images_seen"], path, meta))
        for _, path, meta in sorted(found, key=lambda each: each[:2], reverse=True):
            if self._fetch(path, *meta, resumable=True):
                return

    def fetch(self, images_seen: int | None, *files: str, resumable: bool = False) -> None:
        """Pull everything needed to read a trained model: its snapshot, its experiment, and further files of the
        training.

        Args:
            images_seen: images seen of the snapshot; None takes the newest checkpoint.
            resumable: also pull the moments that a training needs to resume.
        """
        for name in (self.about, *files):
            self.storage.pull(f"{self.relative}/{name}")
        if images_seen is None:
            self.pull(2**62)
            return
        path = f"{SNAPSHOTS}/{images_seen}"
        meta = self._remote_meta(path) if META in self._saved().get(path, ()) else None
        if meta is not None:
            self._fetch(path, *meta, resumable=resumable)

    # --- to the bucket ---------------------------------------------------------------------------------------

    def push(self, path: Path) -> None:
        """Upload what was just saved. Where that fails, a warning says so, and the next push retries it."""
        for each in (*sorted(self.failed), path):
            try:
                self._push(each)
                self.failed.discard(each)
            except FileNotFoundError:  # a newer one has replaced it meanwhile
                self.failed.discard(each)
            except StorageError as error:
                self.failed.add(each)
                warnings.warn(f"{path.parent.name}/{path.name} is on this machine only: {error}", stacklevel=2)
                return

    def finish(self, images_seen: int, evaluation: str | None = None) -> None:
        """Upload the snapshot, where that failed before, and an evaluation's folder. StorageError is passed on.

        Args:
            evaluation: the evaluation's folder below the training's.
        """
        for path in (*sorted(self.failed), self.folder / SNAPSHOTS / str(images_seen)):
            if path.exists():
                self._push(path)
        self.failed.clear()
        if evaluation is not None:
            self.storage.push(f"{self.relative}/{evaluation}")

    def _saved(self) -> dict[str, set[str]]:
        """The bucket's checkpoints and snapshots: path below the training's folder → names of its files."""
        found: dict[str, set[str]] = {}
        for kind in (CHECKPOINTS, SNAPSHOTS):
            for name in self.storage.list(f"{self.relative}/{kind}"):
                path, _, file = name.removeprefix(f"{self.relative}/").rpartition("/")
                found.setdefault(path, set()).add(file)
        return found

    def _remote_meta(self, path: str) -> tuple[bytes, dict[str, Any]] | None:
        """The meta.json of a checkpoint in the bucket, as bytes and parsed; None where there is none that can be
        read."""
        content = self.storage.read(f"{self.relative}/{path}/{META}")
        try:
            return (content, parse_meta(content, f"{path}/{META}")) if content else None
        except CheckpointError as error:
            warnings.warn(f"damaged checkpoint skipped: {error} in {self.storage}", stacklevel=2)
            return None

    def _fetch(self, path: str, content: bytes, meta: dict[str, Any], *, resumable: bool) -> bool:
        """Fetch a checkpoint into the mirror, where it appears whole. Returns False, with a warning, where it is
        damaged."""
        final = self.folder / path
        final.parent.mkdir(parents=True, exist_ok=True)
        files = {name: sha for name, sha in meta["files"].items() if name == STATE or (name == MOMENTS and resumable)}
        with os.fdopen(
            os.open(final.parent / ".pull_lock", LOCK_FLAGS, 0o666), "w"
        ) as lock:  # workers of one machine share the mirror
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in final.parent.glob(".pull_*/"):  # left by a process that was killed
                shutil.rmtree(left)
            if (final / META).exists() and all(_sha256(final / name) == sha for name, sha in files.items()):
                return True
            scratch = Path(tempfile.mkdtemp(prefix=".pull_", dir=final.parent))
            try:
                for name, sha in files.items():
                    self.storage.fetch(f"{self.relative}/{path}/{name}", scratch / name)
                    if _sha256(scratch / name) != sha:
                        warnings.warn(f"damaged checkpoint skipped: {path} in {self.storage}", stacklevel=2)
                        return False
                (scratch / META).write_bytes(content)
                shutil.rmtree(final, ignore_errors=True)
                scratch.rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return True

    def _push(self, path: Path) -> None:
        own = path.relative_to(self.folder).as_posix()
        remote = f"{self.relative}/{own}"
        if path.parent.name == CURVE:
            self.storage.push(remote)
            return
        mine = read_small(path / META, MOST_META_BYTES)
        there = self._saved()
        if META in there.get(own, ()):
            if self.storage.read(f"{remote}/{META}") == mine:
                return
            self.storage.delete(f"{remote}/{META}")  # its tensors are about to be replaced
        self.storage.push(f"{self.relative}/{self.about}")
        self.storage.push(remote, last=META)
        self._retain(own, parse_meta(mine, own))

    def _retain(self, own: str, meta: dict[str, Any]) -> None:
        """Delete all but the newest resumable checkpoints up to this one; those that are to be kept for good stay
        whole."""
        known = []
        for path, files in self._saved().items():
            found = self._remote_meta(path) if META in files else None
            if found and set(found[1]["files"]) <= files and MOMENTS in files:
                known.append((found[1]["images_seen"], path, bool(found[1].get("keep"))))
        older = sorted(each for each in known if each[0] <= meta["images_seen"] and each[1] != own)
        for _, path, keep in older[: 1 - KEPT]:
            if keep:
                continue
            if path.startswith(SNAPSHOTS):
                self.storage.delete(f"{self.relative}/{path}/{MOMENTS}")
            else:
                self.storage.delete(
                    f"{self.relative}/{path}/{META}"
                )  # first, so that a half-deleted checkpoint does not count as whole
                self.storage.delete(f"{self.relative}/{path}")


def _sha256(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except FileNotFoundError:
        return None
