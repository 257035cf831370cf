"""What runs in a trial's own process. No Ray in here: a launcher passes a function that reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch

from pforce.config import from_dict
from pforce.data import DataError
from pforce.training import Callback, Diverged, OnRecord, Record
from pforce.training.checkpoint import CheckpointError
from pforce.trial import Paths, choose_device, run_trial

PROGRESS_EVERY_SECONDS = 2.0


class Payload(TypedDict):
    """A cell as it travels to its worker: plain data."""

    label: str
    fingerprint: str
    experiment: dict[str, Any]
    data: str
    folder: str
    threads: int
    devices: float


def failure_reason(error: Exception) -> str:
    """The tag `reason` of a failed trial."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, DataError):
        return "bad data"
    if isinstance(error, CheckpointError):
        return "checkpoint"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out of memory"
    return type(error).__name__


def run_cell(
    payload: Payload, report: Callable[[dict[str, Any]], None], *, callbacks: tuple[Callback, ...] = ()
) -> None:
    """Train and measure one cell.

    Reports {"phase": "training", "record": …} at each point of the curve, {"phase": PART, "share": 0…1} during
    the evaluation, and last {"phase": "done", "metrics": …, "environment": …} or {"phase": "failed", "reason": …,
    "error": …}.
    """
    torch.set_num_threads(payload["threads"])
    device = choose_device()
    last = 0.0

    def on_record(record: Record) -> None:
        report({"phase": "training", "record": record._asdict()})

    def on_progress(part: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY_SECONDS:
            last = time.monotonic()
            report({"phase": part, "share": share})

    try:
        result = run_trial(
            from_dict(payload["experiment"]),
            Paths(Path(payload["data"]), Path(payload["folder"])),
            identity=payload["fingerprint"],
            device=device,
            callbacks=[OnRecord(on_record), *callbacks],
            progress=on_progress,
            device_count=payload["devices"],
        )
    except Exception as error:  # reported with its reason; the sweep goes on with the other cells
        report({"phase": "failed", "reason": failure_reason(error), "error": f"{type(error).__name__}: {error}"})
        return
    environment = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": str(payload["threads"]),
    }
    report({"phase": "done", "metrics": result.metrics, "environment": environment})
