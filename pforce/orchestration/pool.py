"""Workers that load something once and then serve many tasks: in this process, or as Ray actors.

The driver submits a task whenever a worker is free and takes results as they come. With Ray a worker that dies is
started again and given its task again, so a killed worker loses the task it was at and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from pforce.trial.run import choose_device

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
        self.work = make(*arguments, choose_device())
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


def drain(
    pool: Pool[Task, Result],
    ask: Callable[[], Task | None],
    *,
    tell: Callable[[Task, Result], None] = lambda task, result: None,
    begin: Callable[[Task], None] = lambda task: None,
) -> Iterator[tuple[Task, Result]]:
    """Tasks and their results, as they come, until `ask` has no more; every worker is kept busy.

    Args:
        ask: the next task, or None where there is none (now).
        tell: told each result before the next task is asked for.
        begin: told each task after it was given to a worker.
    """
    under_way = 0
    while True:
        while under_way < pool.workers and (task := ask()) is not None:
            pool.submit(task)
            under_way += 1
            begin(task)
        if not under_way:
            return
        done, result = pool.next()
        under_way -= 1
        tell(done, result)
        # The worker gets its next task before this result is dealt with.
        if (task := ask()) is not None:
            pool.submit(task)
            under_way += 1
            begin(task)
        yield done, result


def make_pool(
    workers: int | None, address: str | None, make: Callable[..., Work[Task, Result]], *arguments: Any
) -> Pool[Task, Result]:
    """A pool of `make(*arguments, device)`: in this process for one worker and no address, else with Ray.

    Without a number of workers: one a GPU of the cluster, or one a core.
    """
    if workers == 1 and address is None:
        return LocalPool(make, *arguments)
    from pforce.orchestration.ray_pool import RayPool

    return RayPool(workers, address, make, *arguments)
