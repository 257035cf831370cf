"""The pool of workers on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self

# Read by ray when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from pforce.executors.placement import place
from pforce.orchestration.pool import Result, Task, Work
from pforce.orchestration.tune import start_ray
from pforce.trial.run import choose_device

RESTARTS = 3
"""Deaths of one worker that are put up with; a task that kills it each time must end the job."""


class WorkerLostError(RuntimeError):
    """A worker's process died again and again."""


class _Worker:
    """An actor: a piece of work that was made once. `make` may be expensive: a restarted actor makes it again."""

    def __init__(self, make: Callable[..., Work[Any, Any]], arguments: tuple[Any, ...], threads: int) -> None:
        torch.set_num_threads(threads)
        self.error: Exception | None = None
        try:
            self.work = make(*arguments, choose_device())
        except Exception as error:  # told by `ready`, as itself: raised here, Ray would tell it as a dead actor's
            self.error = error

    def run(self, task: Any) -> Any:
        return self.work(task)

    def ready(self) -> int:
        """The process id. Raises what making the work raised."""
        if self.error is not None:
            raise self.error
        return os.getpid()


class RayPool(Generic[Task, Result]):
    """Workers on the nodes of a cluster, or of one that is started here; the same number of cores each.

    ConfigError where so many do not fit: they would wait for ever.
    """

    def __init__(
        self, workers: int | None, address: str | None, make: Callable[..., Work[Task, Result]], *arguments: Any
    ) -> None:
        self.ours = not ray.is_initialized()
        self.actors: list[Any] = []
        try:
            nodes = start_ray(address)
            wanted = sum(node.cpus for node in nodes) if workers is None else workers
            placement = place(wanted, nodes=nodes, cpus=None, gpus=None, exactly=workers is not None)
            actor = ray.remote(
                num_cpus=placement.cpus, num_gpus=placement.gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS
            )(_Worker)
            self.actors = [actor.remote(make, arguments, placement.cpus) for _ in range(placement.concurrent)]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.workers, self.threads = placement.concurrent, placement.cpus
        self.free = list(self.actors)
        self.under_way: dict[Any, tuple[Any, Task]] = {}

    def submit(self, task: Task) -> None:
        actor = self.free.pop(0)
        self.under_way[actor.run.remote(task)] = (actor, task)

    def next(self) -> tuple[Task, Result]:
        (reference,), _ = ray.wait(list(self.under_way), num_returns=1)
        actor, task = self.under_way.pop(reference)
        try:
            result: Result = ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error  # the work's own exception, as from a LocalPool
        except RayActorError as error:
            raise WorkerLostError(
                f"a worker's process could not start, or ended {RESTARTS + 1} times; its last words: {error}"
            ) from error
        self.free.append(actor)
        return task, result

    def process_ids(self) -> list[int]:
        """Of the workers, for whoever watches or kills them."""
        try:
            ids: list[int] = ray.get([actor.ready.remote() for actor in self.actors])
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise WorkerLostError(f"a worker could not start: {error}") from error
        return ids

    def __enter__(self) -> Self:
        try:
            self.process_ids()  # waits until every worker has made its work, and raises what that raised
        except BaseException:
            self.__exit__(None, None, None)  # Python calls it only after an __enter__ that succeeded
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ours:
            ray.shutdown()
        else:
            for actor in self.actors:
                ray.kill(actor)
