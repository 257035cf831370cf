"""Workers that load something once and then serve many tasks: in this process, or as Ray actors.

The driver submits a task whenever a worker is free and takes results as they come. With Ray a worker that dies is
started again and given its task again, so a killed worker loses the task it was at and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
Out_co = TypeVar("Out_co", covariant=True)
Work = Callable[[Task], Result]


class Pool(Protocol[Task, Out_co]):
    """Workers for tasks of one kind."""

    workers: int
    """Tasks that can be under way at once."""

    def submit(self, task: Task) -> None:
        """Give a task to a free worker. There must be one: submit `workers` at first, then one for each `next`."""
        ...

    def next(self) -> tuple[Task, Out_co]:
        """Wait for any task to end. What its work raised is raised here."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalPool(Generic[Task, Result]):
    """One worker, in this process, on all its cores or the first GPU."""

    workers = 1

    def __init__(self, make: Callable[..., Work[Task, Result]], *arguments: Any) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.work = make(*arguments, device)
        self.tasks: list[Task] = []

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def next(self) -> tuple[Task, Result]:
        task = self.tasks.pop(0)
        return task, self.work(task)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def make_pool(
    workers: int, address: str | None, make: Callable[..., Work[Task, Result]], *arguments: Any
) -> Pool[Task, Result]:
    """A pool of `make(*arguments, device)`: in this process for one worker and no address, else with Ray."""
    if workers == 1 and address is None:
        return LocalPool(make, *arguments)
    from pforce.orchestration.ray_pool import RayPool

    return RayPool(workers, address, make, *arguments)
