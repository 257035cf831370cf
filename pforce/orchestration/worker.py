"""What runs in a trial's own process. No Ray in here: a launcher passes a function that reports."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch

from pforce.config import Experiment, from_dict
from pforce.data import DataError, Manifest, ensure
from pforce.training import Callback, Diverged, OnRecord, Record
from pforce.training.checkpoint import CheckpointError
from pforce.training.loop import use_bfloat16
from pforce.trial import Paths, TrialLocked, run_trial, train_trial

PROGRESS_EVERY_SECONDS = 2.0

Report = Callable[[dict[str, Any]], None]


class Payload(TypedDict):
    """A cell as it travels to its worker: plain data."""

    fingerprint: str
    training: str
    experiment: dict[str, Any]
    data: str
    data_hash: str
    reference_cache: str
    train_only: bool
    """Leave the evaluation to others (see `pforce.orchestration.apart`)."""
    folder: str
    device: str
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
    if isinstance(error, TrialLocked):
        return "in use"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out of memory"
    return type(error).__name__


def find_data(experiment: Experiment, payload: Payload) -> Path:
    """The data set on this machine: built here if it can be. DataError where it is not the one that was planned."""
    folder = Path(payload["data"])
    if experiment.data.name != "shards" and not folder.exists():
        folder = ensure(experiment.data, progress=False)
    found = Manifest.load(folder).hash
    if found != payload["data_hash"]:
        raise DataError(
            f"{folder} on this machine holds other data (hash {found[:12]}) than was planned with "
            f"({payload['data_hash'][:12]}): the same versions of the packages, or a shared folder, are needed"
        )
    return folder


@contextmanager
def _warnings_to(report: Report) -> Iterator[None]:
    """Report what pforce warns of (a damaged checkpoint or sample): a worker's own output is seen by nobody."""
    show = warnings.showwarning

    def tell(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if issubclass(category, UserWarning) and "pforce" in filename:
            report({"phase": "warning", "message": str(message)})
        else:
            show(message, category, filename, lineno, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell  # type: ignore[assignment]  # the documented way to redirect warnings
        yield


def run_cell(payload: Payload, report: Report, *, callbacks: tuple[Callback, ...] = ()) -> None:
    """Train and measure one cell.

    Reports {"phase": "training", "record": …} at each point of the curve, {"phase": PART, "share": 0…1} during
    the evaluation, {"phase": "warning", "message": …}, and last {"phase": "done", "metrics": …, "environment": …}
    ("trained" where it only trains) or {"phase": "failed", "reason": …, "error": …}.
    """
    torch.set_num_threads(payload["threads"])
    device = torch.device(payload["device"])
    experiment = from_dict(payload["experiment"])
    last = 0.0

    def on_record(record: Record) -> None:
        report({"phase": "training", "record": record._asdict()})

    def on_progress(part: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY_SECONDS:
            last = time.monotonic()
            report({"phase": part, "share": share})

    try:
        with _warnings_to(report):
            how: dict[str, Any] = {
                "training": payload["training"],
                "device": device,
                "callbacks": [OnRecord(on_record), *callbacks],
                "progress": on_progress,
                "device_count": payload["devices"],
            }
            paths = Paths(find_data(experiment, payload), Path(payload["folder"]), Path(payload["reference_cache"]))
            if payload["train_only"]:
                _, metrics = train_trial(experiment, paths, **how)
            else:
                metrics = run_trial(experiment, paths, identity=payload["fingerprint"], **how)
    except Exception as error:  # reported with its reason; the sweep goes on with the other cells
        report({"phase": "failed", "reason": failure_reason(error), "error": f"{type(error).__name__}: {error}"})
        if device.type == "cuda" and not isinstance(error, Diverged | DataError | CheckpointError):
            raise  # the process's CUDA state may be broken: end it, so that it serves no other cell
        return
    environment = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": "bfloat16" if use_bfloat16(experiment.training.precision, device) else "float32",
        "threads": str(payload["threads"]),
    }
    phase = "trained" if payload["train_only"] else "done"
    report({"phase": phase, "metrics": metrics, "environment": environment})
