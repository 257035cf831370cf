"""Training checkpoints: safetensors plus JSON, written under a temporary name, checked by hash, renamed.

A folder `step_00000500/` holds `state.safetensors` (weights, averaged weights, optimiser moments) and
`meta.json` (step, images seen, data position, the identity of the training, the hash of the tensors). It
appears whole or not at all; the newest one whose hash is right is used.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pforce.files import digest, read_small, sha256_of, sync

FORMAT = 1
KEPT = 2
STATE, META = "state.safetensors", "meta.json"
CHECKSUM = "checksum"
"""Key of meta.json: the hash of all of its other entries. Checkpoints of commit 0641df2 have none."""
MOST_META_BYTES = 64 << 20


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


def save(folder: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Write one checkpoint below `folder` and remove all but the newest two. Returns its path.

    OSError (ENOSPC) where there is no room; the checkpoints of before are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{step:08d}"
    needed, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(folder).free
    if needed > free:  # rather than fill the disk to its last byte, which others on it would feel
        raise OSError(errno.ENOSPC, f"a checkpoint of {needed:,} bytes does not fit, {free:,} are free", str(folder))
    scratch = Path(tempfile.mkdtemp(prefix=".tmp_", dir=folder))
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch / STATE)
        sync(scratch / STATE)
        record = {**meta, "format": FORMAT, "step": step, "sha256": sha256_of(scratch / STATE)}
        (scratch / META).write_text(json.dumps({**record, CHECKSUM: checksum(record)}, indent=1))
        sync(scratch / META)
        if final.exists():
            shutil.rmtree(final)  # the same step again, after a resume from an older checkpoint
        scratch.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def remove_partial(folder: Path) -> None:
    """Remove what a killed writer left. The caller must be the folder's only writer."""
    for scratch in folder.glob(".tmp_*"):
        shutil.rmtree(scratch, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first, valid or not."""
    return sorted(folder.glob("step_*")) if folder.is_dir() else []


def checksum(meta: dict[str, Any]) -> str:
    """The hash of a checkpoint's entries as JSON reads them back."""
    return digest("checkpoint", json.loads(json.dumps({key: meta[key] for key in meta if key != CHECKSUM})))


def read_meta(path: Path) -> dict[str, Any]:
    """The entries of a checkpoint's meta.json. CheckpointError where it is missing, damaged or of another format."""
    try:
        meta = json.loads(read_small(path / META, MOST_META_BYTES))
    except PermissionError as error:
        raise CheckpointError(f"{path / META}: may not be read ({error.strerror})") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / META}: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path / META}: holds a {type(meta).__name__}, not an object")
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {meta.get('format')}, this version reads {FORMAT}")
    if CHECKSUM not in meta:
        raise CheckpointError(
            f"{path / META}: has no checksum; one of an earlier version is carried over by `pforce records migrate`"
        )
    if checksum(meta) != meta[CHECKSUM]:
        raise CheckpointError(f"{path / META}: is damaged: its checksum is not that of its entries")
    return meta


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of one checkpoint. CheckpointError where a file is missing, damaged or of another format."""
    meta = read_meta(path)
    try:
        found = sha256_of(path / STATE)
        if found != meta["sha256"]:
            raise CheckpointError(f"{path / STATE}: sha256 {found[:12]}…, meta.json says {meta['sha256'][:12]}…")
        return load_file(path / STATE), meta
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_newest(folder: Path, *, identity: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest valid checkpoint, or None where there is none; a damaged one is passed over with a warning.

    CheckpointError where a valid one belongs to another training: its folder was given by mistake.
    """
    for path in reversed(checkpoints(folder)):
        try:
            tensors, meta = load(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, PermissionError):  # no damage: an older one in its place would hide it
                raise
            warnings.warn(f"damaged checkpoint passed over: {error}", stacklevel=2)
            continue
        if meta["identity"] != identity:
            raise CheckpointError(
                f"{path} belongs to experiment {meta['identity'][:12]}, not to {identity[:12]}: give this one a "
                "folder of its own"
            )
        return tensors, meta
    return None
