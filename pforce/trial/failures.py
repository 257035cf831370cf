"""Why trials fail, and which failures are worth another attempt."""

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
"""Reasons that another attempt would only meet again; everything else may be the machine's."""


class ClusterError(InputError, RuntimeError):
    """A Ray cluster cannot be reached, or refuses what is asked of it. The message names the cure."""


class Failure(NamedTuple):
    """Why an attempt ended."""

    reason: str
    """The tag `reason` of a failed trial."""
    message: str

    @property
    def final(self) -> bool:
        """Whether another attempt is in vain."""
        return self.reason in FINAL


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of space or quota."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and sqlite tell it in words only.
    text = str(error)
    return any(word in text for word in ("No space left on device", "Disk quota exceeded", "database or disk is full"))


def failure_of(error: BaseException) -> Failure:  # noqa: PLR0911  (one line for each kind)
    """The reason of an exception that a trial raised, in its own process."""
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
    if isinstance(error, InputError):  # every other kind of wrong file or setting
        return Failure(WRONG_INPUT, message)
    # On a CPU torch tells it in words only.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return Failure(OUT_OF_MEMORY, message)
    if isinstance(error, RuntimeError) and ("Timed out waiting" in str(error) or "Watchdog caught" in str(error)):
        return Failure(TIMED_OUT, f"a worker did not answer within the time limit (--collective-timeout). {message}")
    return Failure(type(error).__name__, message)


def worst(failures: Sequence[Failure]) -> Failure | None:
    """The cause among what several workers say of one attempt: where one fails, the others lose their connection."""
    if not failures:
        return None
    order = {**dict.fromkeys(FINAL, 0), OUT_OF_MEMORY: 1, WORKER_DIED: 2, TIMED_OUT: 4}
    return min(failures, key=lambda failure: order.get(failure.reason, 3))
