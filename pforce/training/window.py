"""Points of the loss curve: means over the steps since the last point, and what the process used meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pforce.training.flops import utilisation
from pforce.training.outcome import Diverged
from pforce.training.usage import Usage, by_node

if TYPE_CHECKING:
    from pforce.training.loop import TrainState


class Record(NamedTuple):
    """A point of the loss curve: means over the steps since the last one."""

    step: int
    """Optimiser steps done."""
    images_seen: int
    loss: float
    mse: float
    nll: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    device_hours: float = 0.0
    """Device-hours, summed over devices and resumes."""
    time: float = 0.0
    """Time at which it was made, in seconds since 1970."""
    modulation_nodes: int = 0
    """Number of nodes of interpolated modulation; 0 where modulations are exact."""
    modulation_error: float = 0.0
    """Largest relative error of interpolated modulations when they were last checked."""
    data_wait: float = 0.0
    """Share of the time that the first worker waited for data."""
    cores: float = 0.0
    """CPU cores that the first worker's process used, on average."""
    peak_memory: float = 0.0
    """Largest memory of the first worker's process so far, in bytes."""
    peak_device_memory: float = 0.0
    """Largest memory of its GPU that was in use so far, in bytes; 0 on a CPU."""
    device_use: float = 0.0
    """Share of the last moments in which its GPU was computing; 0 on a CPU, or where it does not say."""
    mfu: float = 0.0
    """Model FLOPs utilisation: see `flops.utilisation`."""
    workers: list[list[float]] | None = None
    """For each of several workers, by rank: its node's number and what it used, as in `Used`; None for one worker."""


class Window:
    """The steps since the last point of the curve. A checkpoint holds them, so that it does not force a point.

    Losses stay on the device, so that a GPU does not wait at every step.

    Args:
        rows: steps of an open window that a checkpoint held, (steps, 4): loss, mse, nll, gradient norm.
        seconds: seconds that these steps took.
    """

    def __init__(self, rows: Sequence[Sequence[float]] = (), seconds: float = 0.0) -> None:
        self.rows = [list(row) for row in rows]
        """Means over the workers, checked to be finite."""
        self.seconds = seconds
        self._new: list[Tensor] = []
        """Rows (4,) of this worker's share of the batch, not checked yet."""
        self._since = time.perf_counter()
        self.usage = Usage()

    def begin(self) -> None:
        """Start the clock: time before, such as for reading a checkpoint, is not training."""
        self._since = time.perf_counter()
        self.usage = Usage()

    def add(self, row: Tensor) -> None:
        """Add the row (4,) of a step."""
        self._new.append(row)

    def settle(self, state: TrainState) -> None:
        """Check the new steps and count their time. Diverged where a loss or a gradient is not finite.

        All workers must call it: the means are over them, so that all see a divergence at once.
        """
        if not self._new:
            return
        rows = state.workers.mean(torch.stack(self._new)).cpu().double()
        for offset, row in enumerate(rows):
            if not row.isfinite().all():
                found = f"the loss is {row[0].item()} and the gradient's norm {row[3].item()}"
                raise Diverged(state.step - len(rows) + offset + 1, found)
        now = time.perf_counter()
        seconds = now - self._since
        self.rows += rows.tolist()
        self.seconds += seconds
        state.seconds += seconds
        state.device_seconds += seconds * state.devices
        self._new, self._since = [], now

    def close(self, state: TrainState) -> Record:
        """Make a point of the curve from the window and begin a new window. Diverged as in `settle`."""
        self.settle(state)
        loss, mse, nll, norm = torch.tensor(self.rows, dtype=torch.float64).mean(dim=0).tolist()
        own = self.usage.close(state.device)
        workers = by_node(state.workers.to_first((socket.gethostname(), own))) if state.workers.count > 1 else None
        rate = state.spec.learning_rate_at(state.step - 1)
        speed = len(self.rows) * state.spec.training.batch / max(self.seconds, 1e-9)
        self.rows, self.seconds = [], 0.0
        return Record(
            state.step, state.images_seen, loss, mse, nll, norm, rate, speed, state.device_seconds / 3600, time.time(),
            state.model.modulation_nodes or 0, state.modulation_error, *own, self._mfu(state, speed), workers,
        )  # fmt: skip

    @staticmethod
    def _mfu(state: TrainState, images_per_second: float) -> float:
        return utilisation(
            state.model.config, state.device, images_per_second, devices=state.workers.count, bfloat16=state.bfloat16
        )
