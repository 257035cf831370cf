"""A training's folder in a bucket: what a machine pulls before it works on it, and pushes once it is whole.

In the bucket a checkpoint's tensors come first and its `meta.json` last: half an upload is never taken for whole.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from pforce.files import sha256_of
from pforce.storage import Storage, StorageError
from pforce.training.checkpoint import CHECKSUM, KEPT, META, STATE, checkpoints, checksum
from pforce.trial.folder import CHECKPOINTS


class TrialMirror:
    """Keeps a training's folder the same here and in a bucket (a `pforce.training.callbacks.Mirror`)."""

    def __init__(self, storage: Storage, relative: str, about: str) -> None:
        """
        Args:
            relative: the training's folder, below the storage's root.
            about: name of the file in it that says what is trained; it goes with every checkpoint.
        """
        self.storage, self.relative, self.about = storage, relative, about
        self.folder = storage.root / relative

    def pull(self) -> None:
        """The bucket's newest checkpoint, unless it is here. StorageError where the bucket cannot be read."""
        there = self._files()
        whole = sorted(step for step, files in there.items() if {STATE, META} <= files)
        for step in reversed(whole):
            if self._fetch(step):
                return

    def push(self, path: Path) -> None:
        """Upload a checkpoint that was just saved. Where that fails it is warned of: the next one tries again."""
        try:
            self._push(path)
        except StorageError as error:
            warnings.warn(f"checkpoint {path.name} is on this machine only: {error}", stacklevel=2)

    def finish(self, evaluation: str | None = None, *, last: str = "", skip: tuple[str, ...] = ()) -> None:
        """The newest checkpoint, if an upload of it failed, and an evaluation's folder. StorageError as it comes.

        Args:
            evaluation: folder below the training's. last, skip: as of `Storage.push`.
        """
        saved = checkpoints(self.folder / CHECKPOINTS)
        if saved:
            self._push(saved[-1])
        if evaluation is not None:
            self.storage.push(f"{self.relative}/{evaluation}", last=last, skip=skip)

    def fetch(self, *files: str) -> None:
        """What it takes to read the trained model: the newest checkpoint, what it is of, and further files."""
        for name in (self.about, *files):
            self.storage.pull(f"{self.relative}/{name}")
        self.pull()

    def _files(self) -> dict[str, set[str]]:
        """The bucket's checkpoints: name → names of its files."""
        found: dict[str, set[str]] = {}
        for name in self.storage.list(self._checkpoints):
            step, _, file = name.removeprefix(f"{self._checkpoints}/").partition("/")
            found.setdefault(step, set()).add(file)
        return found

    @property
    def _checkpoints(self) -> str:
        return f"{self.relative}/{CHECKPOINTS}"

    def _remote_meta(self, step: str) -> tuple[bytes, dict[str, Any]] | None:
        """A checkpoint's record in the bucket; None where there is none that can be read."""
        content = self.storage.read(f"{self._checkpoints}/{step}/{META}")
        try:
            meta = json.loads(content) if content else None
        except ValueError:
            return None
        whole = isinstance(meta, dict) and "sha256" in meta and meta.get(CHECKSUM) == checksum(meta)
        return (content, dict(meta)) if content and meta is not None and whole else None

    def _fetch(self, step: str) -> bool:
        """One checkpoint into the mirror; it appears whole. False, with a warning, where it is damaged."""
        found, final = self._remote_meta(step), self.folder / CHECKPOINTS / step
        if found is None:
            warnings.warn(f"damaged checkpoint passed over: {step}/{META} in {self.storage}", stacklevel=2)
            return False
        content, meta = found
        final.parent.mkdir(parents=True, exist_ok=True)
        with (final.parent / ".pull_lock").open("w") as lock:  # workers of one machine share the mirror
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._fetch_alone(step, final, content, meta)

    def _fetch_alone(self, step: str, final: Path, content: bytes, meta: dict[str, Any]) -> bool:
        for left in final.parent.glob(".pull_*/"):  # of a process that was killed
            shutil.rmtree(left)
        if _sha256(final) == meta["sha256"] and (final / META).exists():
            return True
        scratch = Path(tempfile.mkdtemp(prefix=".pull_", dir=final.parent))
        try:
            self.storage.fetch(f"{self._checkpoints}/{step}/{STATE}", scratch / STATE)
            if _sha256(scratch) != meta["sha256"]:
                warnings.warn(f"damaged checkpoint passed over: {step} in {self.storage}", stacklevel=2)
                return False
            (scratch / META).write_bytes(content)
            shutil.rmtree(final, ignore_errors=True)
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    def _push(self, path: Path) -> None:
        remote = f"{self._checkpoints}/{path.name}"
        there = self._files().get(path.name, set())
        if META in there:
            found = self._remote_meta(path.name)
            if STATE in there and found and found[1]["sha256"] == json.loads((path / META).read_text())["sha256"]:
                return
            self.storage.delete(f"{remote}/{META}")  # its tensors are about to be others
        self.storage.push(f"{self.relative}/{self.about}")
        self.storage.push(remote, last=META)
        older = sorted(step for step in self._files() if step < path.name)
        for old in older[: 1 - KEPT]:
            self.storage.delete(f"{self._checkpoints}/{old}/{META}")  # first: what is half deleted is not whole
            self.storage.delete(f"{self._checkpoints}/{old}")


def _sha256(checkpoint: Path) -> str | None:
    try:
        return sha256_of(checkpoint / STATE)
    except FileNotFoundError:
        return None
