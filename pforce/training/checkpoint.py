"""Checkpoints and snapshots of a training: safetensors and JSON, written under a temporary name, then renamed, and
checked by hash.

A training's folder holds both, in the same form. Checkpoints, `checkpoints/step_00000500/`, are taken on the way, to
resume after an interruption. Snapshots, `snapshots/128000/`, are taken at requested images seen and are kept: a
measurement is of a snapshot. Each holds `state.safetensors` (weights and averaged weights), `meta.json` (step, images
seen, data position, the open log window, the identity of the training, hashes of its files) and, where a training can
resume from it, `moments.safetensors` (the optimiser's). It appears whole or not at all. The points of the loss curve
lie beside them, in `curve/` (see `pforce.training.curve`). Below, "checkpoint" means either where nothing else is said.
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

from safetensors.torch import save_file
from torch import Tensor

from pforce.base.files import digest, give_by_umask, read_small, sha256_of, sync, umask
from pforce.base.foreign import ForeignError, parse_object, printable, quoted
from pforce.base.tensors import read_safetensors

FORMAT = 2
"""Version of the format. Version 1, of commit 0641df2, had one file with everything; `pforce records migrate` converts
it."""
KEPT = 2
"""Resumable checkpoints that are kept: the newest, and one more in case that is damaged."""
CHECKPOINTS, SNAPSHOTS = "checkpoints", "snapshots"
STATE, MOMENTS, META = "state.safetensors", "moments.safetensors", "meta.json"
OPTIMIZER = "optimizer/"
"""Prefix of the names of tensors that a training needs to resume, and a measurement does not."""
CHECKSUM = "checksum"
"""Key of meta.json for the hash of all its other entries."""
MOST_META_BYTES = 64 << 20
ENTRIES = {"identity": str, "step": int, "images_seen": int, "resumable": bool, "files": dict}
"""Entries of meta.json that are read before the tensors → their types."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message may repeat a stranger's name of a folder."""

    def __str__(self) -> str:
        return printable(super().__str__())


class Found(NamedTuple):
    """A checkpoint whose meta.json is whole; its tensors are not read yet."""

    path: Path
    meta: dict[str, Any]

    @property
    def images_seen(self) -> int:
        """Images seen at which it was taken."""
        return int(self.meta["images_seen"])

    @property
    def resumable(self) -> bool:
        """Whether a training can resume from it. Moments that retention has removed do not count as damage."""
        return bool(self.meta["resumable"]) and all((self.path / name).exists() for name in self.meta["files"])


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of a step's checkpoint in a training's folder."""
    return folder / CHECKPOINTS / f"step_{step:08d}"


def snapshot_path(folder: Path, images_seen: int) -> Path:
    """Path of the snapshot at some images seen in a training's folder."""
    return folder / SNAPSHOTS / str(images_seen)


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, resumable: bool = True) -> None:
    """Write a checkpoint. It replaces one of the same name.

    OSError (ENOSPC) where there is no room; the existing one is kept.

    Args:
        resumable: also write the tensors whose names begin with `OPTIMIZER`.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    parts = {STATE: {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER)}}
    if resumable:
        parts[MOMENTS] = {name: tensor for name, tensor in tensors.items() if name.startswith(OPTIMIZER)}
    needed = sum(tensor.nbytes for part in parts.values() for tensor in part.values())
    free = shutil.disk_usage(folder).free
    if needed > free:  # rather than fill the disk, which would harm its other users
        raise OSError(errno.ENOSPC, f"a checkpoint of {needed:,} bytes does not fit, {free:,} are free", str(folder))
    scratch = Path(tempfile.mkdtemp(prefix=".tmp_", dir=folder))
    try:
        scratch.chmod(scratch.stat().st_mode & 0o7000 | 0o777 & ~umask())  # a shared folder's group stays its group
        files = {}
        for name, part in parts.items():
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, scratch / name)
            give_by_umask(scratch / name)
            sync(scratch / name)
            files[name] = sha256_of(scratch / name)
        record = {**meta, "format": FORMAT, "resumable": resumable, "files": files}
        (scratch / META).write_text(json.dumps({**record, CHECKSUM: checksum(record)}, indent=1))
        sync(scratch / META)
        if path.exists():
            shutil.rmtree(path)  # the same checkpoint again, after a resume from an older one
        scratch.rename(path)
        sync(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove partial files of a killed writer from a training's folder. The caller must be its only writer."""
    for kind in (CHECKPOINTS, SNAPSHOTS):
        for scratch in (folder / kind).glob(".tmp_*"):
            shutil.rmtree(scratch, ignore_errors=True)


def checksum(meta: Mapping[str, Any]) -> str:
    """Hash of meta.json's entries, as JSON reads them back."""
    return digest("checkpoint", json.loads(json.dumps({key: meta[key] for key in meta if key != CHECKSUM})))


def parse_meta(content: bytes, name: str) -> dict[str, Any]:
    """The entries of a meta.json. CheckpointError where it is damaged or of another format."""
    try:
        meta = parse_object(content)
    except ForeignError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{name}: checkpoint format {quoted(meta.get('format'))}, this version reads {FORMAT}; one of commit "
            "0641df2 is carried over by `pforce records migrate`"
        )
    if checksum(meta) != meta.get(CHECKSUM):
        raise CheckpointError(f"{name}: is damaged: its checksum is not that of its entries")
    for key, kind in ENTRIES.items():
        if type(meta.get(key)) is not kind:
            raise CheckpointError(f"{name}: {key} is {quoted(meta.get(key))}, not of type {kind.__name__}")
    if not all(isinstance(sha256, str) for sha256 in meta["files"].values()):
        raise CheckpointError(f"{name}: files is not a table of hashes")
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
    """Check that a checkpoint's tensors are those that its meta.json names, and return it. CheckpointError where they
    are not.

    Args:
        resumable: also check the moments that a training needs to resume.
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
    """Tensors by name and meta of a checkpoint. CheckpointError as in `check`."""
    found = check(path, resumable=resumable)
    tensors: dict[str, Tensor] = {}
    try:
        for name in found.meta["files"] if resumable else (STATE,):
            tensors |= read_safetensors(path / name)[0]
    except (OSError, ForeignError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return tensors, found.meta


def is_resumable(path: Path) -> bool:
    """Whether a training can resume from a snapshot: it is there and whole."""
    try:
        return check(path, resumable=True).resumable
    except CheckpointError:
        return False


def saved(folder: Path) -> list[Path]:
    """Paths of all checkpoints and snapshots in a training's folder, damaged ones included, each kind in the order of
    its names' numbers."""

    def order(path: Path) -> tuple[int, int]:
        number = path.name.removeprefix("step_")
        return (len(number), int(number)) if number.isdecimal() else (0, 0)

    kinds = (
        sorted((folder / CHECKPOINTS).glob("step_*"), key=order),
        sorted((folder / SNAPSHOTS).glob("[0-9]*"), key=order),
    )
    return [path for paths in kinds for path in paths]


def whole(folder: Path, *, identity: str, say: Callable[[str], None] = lambda line: None) -> list[Found]:
    """Checkpoints and snapshots in a training's folder whose meta.json is whole, fewest images seen first; others are
    reported.

    CheckpointError where one may not be read, as using an older one instead would hide that, and where one belongs to
    another training, as its folder was given by mistake.
    """
    found = []
    for path in saved(folder):
        try:
            each = Found(path, read_meta(path))
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            say(f"damaged checkpoint skipped: {error}")
            continue
        if each.meta["identity"] != identity:
            raise CheckpointError(
                f"{path} belongs to experiment {str(each.meta['identity'])[:12]}, not to {identity[:12]}: give this "
                "one a folder of its own"
            )
        found.append(each)
    # In reverse, a snapshot comes before a checkpoint at the same images seen: it is the one that is kept.
    return sorted(found, key=lambda each: (each.images_seen, each.path.parent.name))


def load_newest(
    folder: Path, *, identity: str, at_most: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and meta of the resumable checkpoint with the most images seen, or None where there is none; damaged ones
    are skipped with a warning. CheckpointError as in `whole`.

    Args:
        folder: folder of the training.
        identity: identity of the training.
        at_most: images seen beyond which none is used.
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
            say(f"damaged checkpoint skipped: {error}")
    return None


class Retention:
    """Retention of resumable checkpoints in a training's folder: keeps the newest two that are whole, and the newest
    two up to the training's present images seen, as it may repeat images because others asked for a snapshot there.

    Each file is hashed once per process.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.known: dict[Path, tuple[float, ...]] = {}
        """Files that were found whole → their inode, size and time of modification then."""

    def apply(self, images_seen: int) -> None:
        """Remove all others: checkpoints entirely, snapshots' moments only. Older damaged checkpoints are removed,
        too."""
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
        """Note that this process has just written this checkpoint, so that it need not be checked."""
        for name in (META, STATE, MOMENTS):
            if (path / name).exists():
                stat = (path / name).stat()
                self.known[path / name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def remove(path: Path) -> None:
    """Remove a checkpoint; of a snapshot, remove only the moments."""
    if path.parent.name == SNAPSHOTS:
        (path / MOMENTS).unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def targets_in(names: Iterable[str], *, batch: int, most: int = 64) -> set[int]:
    """Images seen at which other processes have asked for snapshots, by the names of their files; other names are
    ignored."""
    found = {int(name) for name in names if name.isascii() and name.isdecimal() and len(name) <= 15}
    return set(sorted(images for images in found if images > 0 and images % batch == 0)[:most])
