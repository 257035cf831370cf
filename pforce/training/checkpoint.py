"""Snapshots of a training: safetensors plus JSON, written under a temporary name, checked by hash, renamed.

A training's folder holds two kinds of the same form. `checkpoints/step_00000500/` are taken on the way, to go on from
after an interruption. `snapshots/128000/` are taken at images seen that somebody asked for, and stay: a measurement is
of one. Each holds `state.safetensors` (weights and averaged weights), `meta.json` (step, images seen, data position,
the open log window, the identity of the training, hashes of its files) and, where a training can go on from it,
`moments.safetensors` (the optimiser's). It appears whole or not at all. The points of the loss curve lie beside them,
in `curve/` (see `pforce.training.curve`).
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pforce.base.files import digest, read_small, sha256_of, sync, umask

FORMAT = 2
"""1 had one file with everything; `pforce records migrate` carries those of commit 0641df2 over."""
KEPT = 2
"""Resumable ones that stay: the newest, and one in case that is damaged."""
CHECKPOINTS, SNAPSHOTS = "checkpoints", "snapshots"
STATE, MOMENTS, META = "state.safetensors", "moments.safetensors", "meta.json"
OPTIMIZER = "optimizer/"
"""Prefix of the names of tensors that a training needs to go on, and a measurement does not."""
CHECKSUM = "checksum"
"""Key of meta.json: the hash of all of its other entries."""
MOST_META_BYTES = 64 << 20
ENTRIES = {"identity": str, "step": int, "images_seen": int, "resumable": bool, "files": dict}
"""Entries of meta.json that are read before its tensors, and their types."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


class Found(NamedTuple):
    """A whole one, its tensors not yet read."""

    path: Path
    meta: dict[str, Any]

    @property
    def images_seen(self) -> int:
        """Where it was taken."""
        return int(self.meta["images_seen"])

    @property
    def resumable(self) -> bool:
        """Whether a training can go on from it. Moments that retention has removed are no damage."""
        return bool(self.meta["resumable"]) and all((self.path / name).exists() for name in self.meta["files"])


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of a step's checkpoint in a training's folder."""
    return folder / CHECKPOINTS / f"step_{step:08d}"


def snapshot_path(folder: Path, images_seen: int) -> Path:
    """Path of the snapshot at some images seen in a training's folder."""
    return folder / SNAPSHOTS / str(images_seen)


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, resumable: bool = True) -> None:
    """Write one. It replaces what is there under its name.

    OSError (ENOSPC) where there is no room; what was there before stays.

    Args:
        resumable: keep what begins with `OPTIMIZER`, too.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    parts = {STATE: {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER)}}
    if resumable:
        parts[MOMENTS] = {name: tensor for name, tensor in tensors.items() if name.startswith(OPTIMIZER)}
    needed = sum(tensor.nbytes for part in parts.values() for tensor in part.values())
    free = shutil.disk_usage(folder).free
    if needed > free:  # rather than fill the disk to its last byte, which others on it would feel
        raise OSError(errno.ENOSPC, f"a checkpoint of {needed:,} bytes does not fit, {free:,} are free", str(folder))
    scratch = Path(tempfile.mkdtemp(prefix=".tmp_", dir=folder))
    try:
        scratch.chmod(0o777 & ~umask())
        files = {}
        for name, part in parts.items():
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, scratch / name)
            sync(scratch / name)
            files[name] = sha256_of(scratch / name)
        record = {**meta, "format": FORMAT, "resumable": resumable, "files": files}
        (scratch / META).write_text(json.dumps({**record, CHECKSUM: checksum(record)}, indent=1))
        sync(scratch / META)
        if path.exists():
            shutil.rmtree(path)  # the same again, after a resume from an older one
        scratch.rename(path)
        sync(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what a killed writer left in a training's folder. The caller must be its only writer."""
    for kind in (CHECKPOINTS, SNAPSHOTS):
        for scratch in (folder / kind).glob(".tmp_*"):
            shutil.rmtree(scratch, ignore_errors=True)


def checksum(meta: Mapping[str, Any]) -> str:
    """The hash of a checkpoint's entries as JSON reads them back."""
    return digest("checkpoint", json.loads(json.dumps({key: meta[key] for key in meta if key != CHECKSUM})))


def parse_meta(content: bytes, name: str) -> dict[str, Any]:
    """The entries of a meta.json. CheckpointError where it is damaged or of another format."""
    try:
        meta = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{name}: holds a {type(meta).__name__}, not an object")
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{name}: checkpoint format {meta.get('format')}, this version reads {FORMAT}; one of commit 0641df2 is "
            "carried over by `pforce records migrate`"
        )
    if checksum(meta) != meta.get(CHECKSUM):
        raise CheckpointError(f"{name}: is damaged: its checksum is not that of its entries")
    for key, kind in ENTRIES.items():
        if not isinstance(meta.get(key), kind):
            raise CheckpointError(f"{name}: {key} is {meta.get(key)!r}, not of type {kind.__name__}")
    return meta


def read_meta(path: Path) -> dict[str, Any]:
    """The entries of a checkpoint's meta.json. CheckpointError where it is missing, damaged or of another format."""
    try:
        content = read_small(path / META, MOST_META_BYTES)
    except PermissionError as error:
        raise CheckpointError(f"{path / META}: may not be read ({error.strerror})") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / META}: {error}") from error
    return parse_meta(content, str(path / META))


def check(path: Path, *, resumable: bool = False) -> Found:
    """One whose tensors are those that its meta.json names. CheckpointError where they are not.

    Args:
        resumable: what a training goes on from must be there, too.
    """
    meta = read_meta(path)
    try:
        for name, sha256 in meta["files"].items():
            if name == MOMENTS and not resumable:
                continue
            if name not in (STATE, MOMENTS):
                raise CheckpointError(f"{path / META}: names a file that no checkpoint has")
            found = sha256_of(path / name)
            if found != sha256:
                raise CheckpointError(f"{path / name}: sha256 {found[:12]}…, meta.json says {sha256[:12]}…")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Found(path, meta)


def load(path: Path, *, resumable: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of one. CheckpointError as `check`."""
    found = check(path, resumable=resumable)
    tensors: dict[str, Tensor] = {}
    try:
        for name in found.meta["files"] if resumable else (STATE,):
            tensors |= load_file(path / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return tensors, found.meta


def is_resumable(path: Path) -> bool:
    """Whether a training can go on from a snapshot: it is there, and what is left of it is whole."""
    try:
        return check(path, resumable=True).resumable
    except CheckpointError:
        return False


def saved(folder: Path) -> list[Path]:
    """All of a training's folder, whole or not, those of the most images seen last, as far as their names say."""

    def order(path: Path) -> tuple[int, int]:
        number = path.name.removeprefix("step_")
        return (len(number), int(number)) if number.isdecimal() else (0, 0)

    kinds = (
        sorted((folder / CHECKPOINTS).glob("step_*"), key=order),
        sorted((folder / SNAPSHOTS).glob("[0-9]*"), key=order),
    )
    return [path for paths in kinds for path in paths]


def whole(folder: Path, *, identity: str, say: Callable[[str], None] = lambda line: None) -> list[Found]:
    """Paths in a training's folder whose meta.json is whole, fewest images seen first; others are reported.

    CheckpointError where one may not be read, as an older one in its place would hide it, and where one belongs to
    another training: its folder was given by mistake.
    """
    found = []
    for path in saved(folder):
        try:
            each = Found(path, read_meta(path))
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            say(f"damaged checkpoint passed over: {error}")
            continue
        if each.meta["identity"] != identity:
            raise CheckpointError(
                f"{path} belongs to experiment {str(each.meta['identity'])[:12]}, not to {identity[:12]}: give this "
                "one a folder of its own"
            )
        found.append(each)
    # A snapshot before a checkpoint of the same images: it stays.
    return sorted(found, key=lambda each: (each.images_seen, each.path.parent.name))


def load_newest(
    folder: Path, *, identity: str, at_most: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The resumable one of the most images seen, or None where there is none; damaged ones are passed over with a
    warning. CheckpointError as `whole`.

    Args:
        folder: of the training. at_most: images seen.
    """

    def say(line: str) -> None:
        warnings.warn(line, stacklevel=3)

    for found in reversed(whole(folder, identity=identity, say=say)):
        if not found.resumable or (at_most is not None and found.images_seen > at_most):
            continue
        try:
            return load(found.path, resumable=True)
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            say(f"damaged checkpoint passed over: {error}")
    return None


class Retention:
    """Which resumable ones of a training's folder stay: the newest two that are whole, and of those up to where the
    training is, too: it may go a second time through images for which others have asked.

    A hash is computed once in a process.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.known: dict[Path, tuple[float, ...]] = {}
        """Files that were found whole, and what they looked like then."""

    def apply(self, images_seen: int) -> None:
        """Remove the others: checkpoints wholly, of snapshots the moments. Damaged ones that are older go, too."""
        found = [each for each in whole(self.folder, identity=self.identity) if each.resumable]
        stay: list[Found] = []
        for limit in (None, images_seen):
            kept = 0
            for each in reversed(found):
                if kept < KEPT and (limit is None or each.images_seen <= limit) and self._is_whole(each):
                    kept += 1
                    stay.append(each)
        if not stay:
            return
        paths, newest = {each.path for each in stay}, max(each.images_seen for each in stay)
        for each in found:
            if each.path not in paths and not each.meta.get("keep") and each.images_seen <= newest:
                remove(each.path)
        readable = {each.path for each in found}
        for path in (self.folder / CHECKPOINTS).glob("step_*"):
            if path not in readable and path.name < checkpoint_path(self.folder, stay[0].meta["step"]).name:
                remove(path)

    def _is_whole(self, each: Found) -> bool:
        try:
            looks = {
                each.path / name: (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                for name in (META, *each.meta["files"])
                for stat in [(each.path / name).stat()]
            }
            if any(self.known.get(path) != look for path, look in looks.items()):
                check(each.path, resumable=True)
                self.known |= looks
        except (OSError, CheckpointError):
            return False
        return True

    def trust(self, path: Path) -> None:
        """One was written by this process just now."""
        for name in (META, STATE, MOMENTS):
            if (path / name).exists():
                stat = (path / name).stat()
                self.known[path / name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def remove(path: Path) -> None:
    """Remove a checkpoint; of a snapshot only what a training would go on from."""
    if path.parent.name == SNAPSHOTS:
        (path / MOMENTS).unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def targets_in(names: Iterable[str], *, batch: int, most: int = 64) -> set[int]:
    """Images seen that others have asked for, by the names of their files; what is no such number is left alone."""
    found = {int(name) for name in names if name.isascii() and name.isdecimal() and len(name) <= 15}
    return set(sorted(images for images in found if images > 0 and images % batch == 0)[:most])
