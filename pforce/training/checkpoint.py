"""Training checkpoints: safetensors plus JSON, written under a temporary name, checked by hash, renamed.

A folder `step_00000500/` holds `state.safetensors` (weights, averaged weights, optimiser moments) and
`meta.json` (step, images seen, data position, the identity of the training, the hash of the tensors). It
appears whole or not at all; the newest one whose hash is right is used.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pforce.files import sha256_of

FORMAT = 1
KEPT = 2
STATE, META = "state.safetensors", "meta.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used."""


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        _flush(scratch / STATE)
        record = {**meta, "format": FORMAT, "step": step, "sha256": sha256_of(scratch / STATE)}
        (scratch / META).write_text(json.dumps(record, indent=1))
        _flush(scratch / META)
        if final.exists():
            shutil.rmtree(final)  # the same step again, after a resume from an older checkpoint
        scratch.rename(final)
        _flush(folder)
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


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of one checkpoint. CheckpointError where a file is missing, damaged or of another format."""
    try:
        meta = json.loads((path / META).read_text())
        if meta.get("format") != FORMAT:
            raise CheckpointError(f"{path}: checkpoint format {meta.get('format')}, this version reads {FORMAT}")
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
            warnings.warn(f"damaged checkpoint passed over: {error}", stacklevel=2)
            continue
        if meta["identity"] != identity:
            raise CheckpointError(
                f"{path} belongs to experiment {meta['identity'][:12]}, not to {identity[:12]}: give this one a "
                "folder of its own"
            )
        return tensors, meta
    return None
