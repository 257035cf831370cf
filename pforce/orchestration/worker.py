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
from pforce.parallel import ALONE, Workers
from pforce.records.ledger import Ledger
from pforce.records.parts import Inputs, cell_parts
from pforce.records.row import training_metrics
from pforce.storage import Storage
from pforce.training import Callback, Diverged, OnRecord, Record, Sharding
from pforce.training.checkpoint import CheckpointError
from pforce.training.loop import use_bfloat16
from pforce.trial.failures import FINAL, Failure, failure_of
from pforce.trial.run import Paths, Where, run_trial, train_trial

PROGRESS_EVERY_SECONDS = 2.0
TOGETHER = (Diverged, CheckpointError)
"""What all workers of a group raise at once: they go on with the next cell."""

Report = Callable[[dict[str, Any]], None]


class Payload(TypedDict):
    """A cell as it travels to its worker: plain data."""

    fingerprint: str
    experiment: dict[str, Any]
    inputs: dict[str, Any]
    """What it reads, by content (`pforce.records.parts.Inputs`)."""
    data: str
    storage: str
    """URI; of a bucket every machine has a mirror of its own."""
    train_only: bool
    """Leave the evaluation to others (see `pforce.orchestration.apart`)."""
    device: str
    threads: int
    devices: float
    """Devices of all of its workers together."""
    sharding: Sharding
    provenance: dict[str, str]
    """Commit and changes of the driver's code."""


class CellFailed(RuntimeError):
    """An attempt at a cell ended in a way that another process may survive. The process should end."""

    def __init__(self, failure: Failure) -> None:
        self.reason, self.message = failure
        super().__init__(f"{self.reason}: {self.message}")

    def __reduce__(self) -> tuple[type[CellFailed], tuple[Failure]]:
        return CellFailed, (Failure(self.reason, self.message),)


def paths_of(payload: Payload, data: Path) -> Paths:
    """Where this machine finds and leaves a cell's files."""
    return Paths(data, Storage.open(payload["storage"]))


def find_data(experiment: Experiment, payload: Payload) -> Path:
    """The data set on this machine: built here if it can be. DataError where it is not the one that was planned."""
    folder = Path(payload["data"])
    if experiment.data.name != "shards" and not folder.exists():
        folder = ensure(experiment.data, progress=False)
    found = Manifest.load(folder).hash
    planned = Inputs(**payload["inputs"]).data
    if found != planned:
        raise DataError(
            f"{folder} on this machine holds other data (hash {found[:12]}) than was planned with "
            f"({planned[:12]}): the same versions of the packages, or a shared folder, are needed"
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


def run_cell(
    payload: Payload, report: Report, *, callbacks: tuple[Callback, ...] = (), workers: Workers = ALONE
) -> None:
    """Train and measure one cell.

    Reports {"phase": "training", "record": …} at each point of the curve, {"phase": PART, "share": 0…1} during
    the evaluation, {"phase": "warning", "message": …}, and last {"phase": "done", "metrics": …, "environment": …}
    ("trained" where it only trains) or, where another attempt would be in vain, {"phase": "failed", "reason": …,
    "error": …}. CellFailed where another attempt, in another process, may succeed.

    Args:
        workers: the processes that share the cell. They fail together or not at all: where one of several fails alone,
            that is CellFailed whatever its reason, because the others are left in the middle of a step.
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
            where = Where(
                device=device,
                workers=workers,
                sharding=payload["sharding"],
                devices=payload["devices"],
                callbacks=[OnRecord(on_record), *callbacks],
                progress=on_progress,
                provenance=payload["provenance"],
            )
            inputs = Inputs(**payload["inputs"])
            paths = paths_of(payload, find_data(experiment, payload))
            metrics: dict[str, float] = {}
            if payload["train_only"]:
                ledger = Ledger(paths.storage, lambda line: warnings.warn(line, stacklevel=2))
                trained = train_trial(experiment, paths, cell_parts(experiment, inputs), where, ledger)
                if trained.record is not None:
                    metrics = training_metrics(trained.record)
            else:
                row = run_trial(experiment, paths, where, inputs=inputs)
                if row is not None:
                    metrics = row.metrics
    except CellFailed:  # of a report: the driver wants an end
        raise
    except Exception as error:
        failure = failure_of(error)
        together = workers.count == 1 or isinstance(error, TOGETHER)
        # A process whose CUDA state may be broken ends, so that it serves no other cell.
        if failure.reason not in FINAL or not together:
            raise CellFailed(failure) from error
        report({"phase": "failed", "reason": failure.reason, "error": failure.message})
        return
    environment = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": "bfloat16" if use_bfloat16(experiment.training.precision, device) else "float32",
        "threads": str(payload["threads"]),
        "workers": str(workers.count),
    }
    if payload["sharding"] != "none":
        environment["sharding"] = payload["sharding"]
    phase = "trained" if payload["train_only"] else "done"
    report({"phase": phase, "metrics": metrics, "environment": environment})
