"""The executor on Ray Train: tasks of several workers (DDP), on one or more nodes.

A group of workers is one `TorchTrainer`. It runs task after task from the rendezvous, so that processes, imports and
the forming of the group are paid for once. Where a worker or its node is lost, the group ends and another one replaces
it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pforce.executors.support.entry import of_group
from pforce.executors.support.seats import STARTS, Gone, Seats
from pforce.executors.support.setup import Setup
from pforce.trial.failures import OUT_OF_MEMORY, WORKER_DIED, Failure, failure_of, worst
from pforce.trial.perform import AttemptFailed


class _Trainer(TorchTrainer):
    """A trainer without Ray's process for data sets, which is not needed and would start just when the workers import
    torch. (Where a release of Ray chooses its callbacks elsewhere, this does nothing.)"""

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # not in the stubs of all releases
        return [each for each in found if self.datasets or type(each).__name__ != "DatasetsCallback"]


class _Group(threading.Thread):
    """One TorchTrainer in a thread of the driver, because Ray sets no signal handlers outside the main thread."""

    def __init__(self, executor: Executor, seat: int, number: int) -> None:
        super().__init__(daemon=True, name=f"group-{number}")
        self.error: Exception | None = None
        setup, placement = executor.setup, executor.placement
        self.trainer = _Trainer(
            of_group,
            train_loop_config={**executor.worker_config, "seat": seat},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if placement.gpus else "gloo", timeout_s=round(setup.collective_timeout)
            ),
            scaling_config=ScalingConfig(
                num_workers=placement.workers,
                use_gpu=bool(placement.gpus),
                resources_per_worker=placement.resources,
                placement_strategy="STRICT_SPREAD" if setup.spread else "PACK",
            ),
            run_config=RunConfig(
                # A new name, because Ray would resume an old one; our checkpoints are our own.
                name=f"{setup.name}-{os.getpid()}-{number}",
                storage_path=str(setup.scratch),
                # Ray's default retries for ever to start a group whose workers die at their start.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=STARTS - 1),  # type: ignore[call-arg]
            ),
        )

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:  # the driver's loop looks at it
            self.error = error


def found_no_room(error: BaseException) -> bool:
    """Whether a group ended because its workers waited for room in the cluster."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def cause_of(error: BaseException) -> Failure:
    """The failure that ended a group, as far as Ray knows."""
    found = []
    error = getattr(error, "controller_failure", error)
    for failure in getattr(error, "worker_failures", {0: error}).values():
        cause = failure.cause if isinstance(failure, RayTaskError) else failure
        cause = getattr(
            cause, "health_check_failure", cause
        )  # Ray Train's wrapper around the error of its health check
        if isinstance(cause, AttemptFailed):
            found.append(cause.failed.failure)
        elif isinstance(cause, OutOfMemoryError) or "memory pressure" in str(cause):
            found.append(Failure(OUT_OF_MEMORY, "Ray ended the worker because the node's memory was exhausted"))
        elif isinstance(cause, RayActorError):
            found.append(Failure(WORKER_DIED, "a worker's process or its node was lost"))
        else:
            found.append(failure_of(cause))
    return worst(found) or failure_of(error)


class Executor(Seats):
    """Runs tasks in groups of workers that Ray Train starts."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.groups: dict[int, _Group] = {}
        """Seat → its group."""
        self.started_groups = 0

    def start(self, seats: list[int]) -> None:
        for seat in seats:
            self.started_groups += 1
            self.groups[seat] = _Group(self, seat, self.started_groups)
            self.groups[seat].start()

    def ended(self) -> Iterable[Gone]:
        for seat, group in list(self.groups.items()):
            if group.is_alive():
                continue
            del self.groups[seat]
            if group.error is not None and found_no_room(group.error):
                self.start([seat])
            else:
                yield Gone(seat, cause_of(group.error) if group.error is not None else None)

    def finish(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for group in self.groups.values():
            group.join(max(0.0, until - time.monotonic()))
