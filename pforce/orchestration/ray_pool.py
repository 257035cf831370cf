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

from pforce.orchestration.placement import place
from pforce.orchestration.pool import Result, Task, Work
from pforce.orchestration.tune import start_ray

RESTARTS = 3
"""Deaths of one worker that are put up with; a task that kills it each time must end the job."""


class WorkerLostError(RuntimeError):
    """A worker's process died again and again."""


class _Worker:
    """An actor: a piece of work that was made once. `make` may be expensive: a restarted actor makes it again."""

    def __init__(self, make: Callable[..., Work[Any, Any]], arguments: tuple[Any, ...], threads: int) -> None:
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.work = make(*arguments, device)

    def run(self, task: Any) -> Any:
        return self.work(task)

    def process_id(self) -> int:
        return os.getpid()


class RayPool(Generic[Task, Result]):
    """Workers on the nodes of a cluster, or of one that is started here; the same number of cores each.

    ConfigError where so many do not fit: they would wait for ever.
    """

    def __init__(
        self, workers: int, address: str | None, make: Callable[..., Work[Task, Result]], *arguments: Any
    ) -> None:
        self.ours = not ray.is_initialized()
        nodes = start_ray(address)
        try:
            placement = place(workers, nodes=nodes, cpus=None, gpus=None, exactly=True)
            actor = ray.remote(
                num_cpus=placement.cpus, num_gpus=placement.gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS
            )(_Worker)
            self.actors: list[Any] = [actor.remote(make, arguments, placement.cpus) for _ in range(workers)]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.workers, self.threads = workers, placement.cpus
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
        ids: list[int] = ray.get([actor.process_id.remote() for actor in self.actors])
        return ids

    def __enter__(self) -> Self:
        try:
            self.process_ids()  # waits until every worker has made its work, and raises what that raised
        except RayActorError as error:
            raise WorkerLostError(f"a worker could not start: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ours:
            ray.shutdown()
        else:
            for actor in getattr(self, "actors", []):
                ray.kill(actor)
