"""Reasons of failed attempts, and whether a retry can help."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

import torch
from safetensors import SafetensorError

from pforce.base.errors import ConfigError, FieldError, InputError
from pforce.data import DataError
from pforce.metrics.detectors import DetectorError
from pforce.metrics.held_out import NotFinite
from pforce.storage import StorageError
from pforce.training import Diverged
from pforce.training.checkpoint import CheckpointError

DISK_FULL = "disk full"
WRONG_INPUT = "wrong input"
WORKER_DIED = "worker died"
OUT_OF_MEMORY = "out of memory"
TIMED_OUT = "collective timeout"
FINAL = ("diverged", "bad data", "checkpoint", WRONG_INPUT, DISK_FULL)
"""Reasons for which a retry is useless; all others may be the machine's fault."""


class ClusterError(InputError, RuntimeError):
    """A Ray cluster cannot be reached or refuses a request. The message gives the remedy."""


class Failure(NamedTuple):
    """The failure of an attempt."""

    reason: str
    """Short reason, the tag `reason` of a failed cell."""
    message: str

    @property
    def final(self) -> bool:
        """Whether a retry is useless."""
        return self.reason in FINAL


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written because space or quota is exhausted."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and sqlite report it in words only.
    text = str(error)
    return any(word in text for word in ("No space left on device", "Disk quota exceeded", "database or disk is full"))


def failure_of(error: BaseException) -> Failure:  # noqa: PLR0911  (one line for each kind)
    """The failure for an exception that an attempt raised in its own process."""
    message = f"{type(error).__name__}: {error}"
    if is_disk_full(error):
        return Failure(DISK_FULL, message)
    if isinstance(error, Diverged | NotFinite):
        return Failure("diverged", message)
    if isinstance(error, DataError):
        return Failure("bad data", message)
    if isinstance(error, StorageError):
        return Failure("storage", message)
    if isinstance(error, CheckpointError | SafetensorError):
        return Failure("checkpoint", message)
    if isinstance(error, ConfigError | FieldError | DetectorError):
        return Failure(WRONG_INPUT, message)
    if isinstance(error, InputError):  # all other wrong files or settings
        return Failure(WRONG_INPUT, message)
    # On a CPU, torch reports it in words only.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return Failure(OUT_OF_MEMORY, message)
    if isinstance(error, RuntimeError) and ("Timed out waiting" in str(error) or "Watchdog caught" in str(error)):
        return Failure(TIMED_OUT, f"a worker did not answer within the time limit (--collective-timeout). {message}")
    return Failure(type(error).__name__, message)


def worst(failures: Sequence[Failure]) -> Failure | None:
    """The failure that caused the others among several workers' failures of one attempt: where one fails, the others
    lose their connection."""
    if not failures:
        return None
    order = {**dict.fromkeys(FINAL, 0), OUT_OF_MEMORY: 1, WORKER_DIED: 2, TIMED_OUT: 4}
    return min(failures, key=lambda failure: order.get(failure.reason, 3))
