"""What Ray Train runs in the processes of a group of workers: cell after cell, until the desk has no more.

A module of its own: these processes import this and no tracking store.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
import torch.distributed as dist

from pforce.orchestration.worker import CellFailed, Payload, run_cell
from pforce.parallel import Workers
from pforce.trial.failures import Failure

ENDS = ("done", "trained", "failed")


def serve(config: dict[str, Any]) -> None:
    """A Ray Train loop: all workers of a group run it. Raises where the group cannot go on (one worker's failure
    leaves the others in a collective operation): the driver starts another group."""
    desk: Any = config["desk"]
    slot, group = config["slot"], config["group"]
    workers = Workers.joined()

    def ask() -> Payload | None:
        found: Payload | None = ray.get(desk.next.remote(slot, group))
        return found

    while (payload := workers.first_does(ask)) is not None:
        _run(payload, workers, desk, slot)
    if dist.is_initialized():
        dist.destroy_process_group(workers.patient)


def _run(payload: Payload, workers: Workers, desk: Any, slot: int) -> None:
    def report(message: dict[str, Any]) -> None:
        # Awaited: the process may be gone right after it. About a millisecond.
        if not ray.get(desk.report.remote(slot, message)) and message["phase"] not in ENDS:
            raise CellFailed(Failure("stopped", "by its driver"))

    def warn(message: dict[str, Any]) -> None:
        """All that is heard of the other workers."""
        if message["phase"] == "warning":
            report(message)

    try:
        run_cell(payload, report if workers.first else warn, workers=workers)
    except CellFailed as failure:
        # The driver chooses among what the workers say: the others only see that one of them is gone.
        ray.get(desk.failed.remote(slot, failure.reason, failure.message))
        raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
