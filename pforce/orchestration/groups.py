"""The launcher on Ray Train: trials of several workers (DDP), on one or more nodes.

A group of workers is one `TorchTrainer`. It serves cell after cell, so that processes, imports and the meeting of the
workers are paid for once, not for every trial. What the workers report goes through an actor, the desk; the driver
records it. Where a worker or its node is lost the group ends, and another one goes on at the cell's last checkpoint.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Any

from rich.console import Console

from pforce.executors.placement import Placement, place
from pforce.orchestration.desk import Desk
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.plan import Plan, payload, ray_folder
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.sweep import Work
from pforce.orchestration.tune import cluster
from pforce.orchestration.worker import CellFailed
from pforce.trial.failures import OUT_OF_MEMORY, WORKER_DIED, ClusterError, Failure, failure_of, worst

# Read by Ray Train in the driver and passed on to the controller and the workers. It looks at its workers this often:
# with its own 2 s every group ends seconds late.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Processes of its own that nobody reads or needs here.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pforce.orchestration.group_worker import serve

POLL_SECONDS = 0.2
WAITING_SECONDS = 60.0
"""A group that has not begun after so long waits for a node: that is said."""
STOPPING_SECONDS = 60.0
"""How long groups may take to end at the time limit; they end at their next report."""
STARTS = 3
"""Groups that may fail in a row before they have asked for a cell."""


class GroupLost(ClusterError):
    """Groups of workers cannot be started."""


class _Trainer(TorchTrainer):
    """Without Ray's process that hands out data sets: it would have none, and it starts just when the workers import
    torch. (Where a release of Ray chooses its callbacks elsewhere, this does nothing.)"""

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # not in the stubs of all releases
        return [each for each in found if self.datasets or type(each).__name__ != "DatasetsCallback"]


class _Group(threading.Thread):
    """One TorchTrainer, in a thread of the driver: where it is called from another one Ray sets no signal handler."""

    def __init__(self, slot: int, number: int, desk: Any, plan: Plan, placement: Placement) -> None:
        super().__init__(daemon=True, name=f"group-{number}")
        self.slot, self.number, self.started = slot, number, time.monotonic()
        self.looked_at = False
        self.error: Exception | None = None
        options = plan.options
        resources = {"CPU": float(placement.cpus), **({"GPU": placement.gpus} if placement.gpus else {})}
        self.trainer = _Trainer(
            serve,
            train_loop_config={"desk": desk, "slot": slot, "group": number},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if placement.gpus else "gloo", timeout_s=round(options.collective_timeout)
            ),
            scaling_config=ScalingConfig(
                num_workers=placement.workers,
                use_gpu=bool(placement.gpus),
                resources_per_worker=resources,
                placement_strategy="STRICT_SPREAD" if options.spread else "PACK",
            ),
            run_config=RunConfig(
                # Ray would resume what had this name; our checkpoints are our own.
                name=f"{plan.sweep.name}-{os.getpid()}-{number}",
                storage_path=ray_folder(options),
                # Ray's own default tries for ever to start a group whose workers die as they begin.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=STARTS - 1),  # type: ignore[call-arg]
            ),
        )

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:  # looked at by the driver's loop
            self.error = error


def found_no_room(error: BaseException) -> bool:
    """Whether a group ended because its workers waited for room in the cluster."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def cause_of(error: BaseException) -> Failure:
    """Why a group ended, as far as Ray knows."""
    found = []
    error = getattr(error, "controller_failure", error)
    for failure in getattr(error, "worker_failures", {0: error}).values():
        cause = failure.cause if isinstance(failure, RayTaskError) else failure
        cause = getattr(cause, "health_check_failure", cause)  # Ray Train's wrapping of what its poll of a worker met
        if isinstance(cause, CellFailed):
            found.append(Failure(cause.reason, cause.message))
        elif isinstance(cause, OutOfMemoryError) or "memory pressure" in str(cause):
            found.append(Failure(OUT_OF_MEMORY, "Ray ended the worker for want of the node's memory"))
        elif isinstance(cause, RayActorError):
            found.append(Failure(WORKER_DIED, "a worker's process or its node was lost"))
        else:
            found.append(failure_of(cause))
    return worst(found) or failure_of(error)


class _Driver:
    """The loop that starts groups, records what they report, and decides about what fails."""

    def __init__(self, plan: Plan, recorder: Recorder, placement: Placement) -> None:
        self.plan, self.recorder, self.placement = plan, recorder, placement
        self.work: dict[str, Work] = {item.fingerprint: item for item in plan.missing}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Desk)
        self.desk: Any = actor.options(num_cpus=0, scheduling_strategy=here).remote(
            [payload(plan, item, placement) for item in plan.missing]
        )
        self.attempts: Counter[str] = Counter()
        self.starts = 0
        self.failed_starts = 0
        limit = plan.options.max_hours
        self.deadline = None if limit is None else recorder.started + limit * 3600
        self.groups = [self._start(slot) for slot in range(placement.concurrent)]

    def _start(self, slot: int, *, looked_at: bool = False) -> _Group:
        self.starts += 1
        group = _Group(slot, self.starts, self.desk, self.plan, self.placement)
        group.looked_at = looked_at
        group.start()
        return group

    def run(self) -> None:
        """Until every cell has ended, or the time limit."""
        stopping: float | None = None
        while self.groups:
            self._record()
            for group in list(self.groups):
                if not group.is_alive():
                    self._record()  # what it reported before it ended
                    self.groups.remove(group)
                    if stopping is None:
                        self._ended(group)
                elif not group.looked_at and time.monotonic() - group.started > WAITING_SECONDS:
                    self._look_at(group)
            if stopping is None and self.deadline is not None and time.monotonic() > self.deadline:
                stopping = time.monotonic()
                ray.get(self.desk.close.remote())
            if stopping is not None and time.monotonic() - stopping > STOPPING_SECONDS:
                return
            time.sleep(POLL_SECONDS)

    def _record(self) -> None:
        for fingerprint, report in ray.get(self.desk.take.remote()):
            item = self.work[fingerprint]
            if report["phase"] == "started":
                self.failed_starts = 0
                self.recorder.start(item)
            else:
                self.recorder.report(item, report)

    def _look_at(self, group: _Group) -> None:
        """Say, once, where a group waits for room: it would wait in silence, and for ever."""
        group.looked_at = True
        if ray.get(self.desk.has_begun.remote(group.number)):
            return
        free, placement = ray.available_resources(), self.placement
        gpus = f" and {placement.gpus:g} GPU(s)" if placement.gpus else ""
        self.recorder.display.line(
            f"waiting for room for {placement.workers} workers of {placement.cpus} core(s){gpus}: the cluster has "
            f"{free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs free on "
            f"{sum(node['Alive'] for node in ray.nodes())} node(s)"
        )

    def _ended(self, group: _Group) -> None:
        fingerprint, said, waiting = ray.get(self.desk.ended.remote(group.slot))
        if group.error is None:
            return  # there were no more cells
        if found_no_room(group.error):
            self.groups.append(self._start(group.slot, looked_at=True))
            return
        failure = worst([*(Failure(*each) for each in said), cause_of(group.error)])
        assert failure is not None
        if fingerprint is None:
            self.failed_starts += 1
            if self.failed_starts >= STARTS * self.placement.concurrent:
                raise GroupLost(f"no group of {self.placement.workers} workers could be started: {failure.message}")
        again = fingerprint is not None and self._again(group.slot, self.work[fingerprint], failure)
        if again or waiting:
            self.groups.append(self._start(group.slot))

    def _again(self, slot: int, item: Work, failure: Failure) -> bool:
        """An attempt at a cell failed; whether there is another one."""
        self.attempts[item.fingerprint] += 1
        attempt, attempts = self.attempts[item.fingerprint] + 1, self.plan.options.retries + 1
        if failure.final or attempt > attempts:
            ray.get(self.desk.give_up.remote(slot))
            self.recorder.report(item, {"phase": "failed", "reason": failure.reason, "error": failure.message})
            return False
        self.recorder.retry(item, failure.reason, failure.message, attempt, attempts)
        return True


def launch(plan: Plan, recorder: Recorder, console: Console) -> None:
    """Run what is missing on the cluster, as many trials at once as fit; ends the cluster if it started it."""
    options = plan.options
    with cluster(options.ray_address) as nodes:
        placement = place(
            len(plan.missing),
            nodes=nodes,
            cpus=options.cpus_per_trial,
            gpus=options.gpus_per_trial,
            workers=options.workers,
            spread=options.spread,
        )
        gpus = f" and {placement.gpus:g} GPU(s)" if placement.gpus else ""
        spread = ", each on a node of its own" if options.spread else ""
        console.print(
            f"{len(plan.missing)} trials, {placement.concurrent} at a time, each on {placement.workers} workers of "
            f"{placement.cpus} core(s){gpus}{spread}; a worker that does not answer is given up after "
            f"{options.collective_timeout:g} s",
            highlight=False,
        )
        recorder.begin()
        driver = _Driver(plan, recorder, placement)
        with stop_on_signals(restore=False):
            driver.run()
