"""The worker processes of one training and their messages to each other, with torch.distributed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""Time limit of waits for work that only the first worker does, such as waiting for another process's training. The
executor notices a worker that dies meanwhile."""


@dataclass(frozen=True)
class Workers:
    """The processes that share a training; by default, this process alone."""

    rank: int = 0
    count: int = 1
    patient: Any = None
    """The process group (gloo) for waits to which the training's timeout does not apply."""

    @classmethod
    def joined(cls) -> Workers:
        """The workers of the default process group. All of them must call it."""
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), patient)

    @property
    def first(self) -> bool:
        """Whether this is the first worker, which writes and reports."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all workers' values, in place where there are several."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def gather(self, value: T, *, patient: bool = True) -> list[T]:
        """All workers' values, in the order of ranks. For small values: they are pickled.

        Args:
            patient: wait without the training's timeout.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.patient if patient else None)
        return values

    def to_first(self, value: T) -> list[T]:
        """All workers' values, in the order of ranks, on the first worker; an empty list on the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(value, values, dst=0, group=self.patient)
        return values or []

    def first_does(self, work: Callable[[], T]) -> T:
        """Run `work` on the first worker and return its result on all of them. An exception is raised on all of them,
        so that none keeps waiting."""
        if self.count == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = work()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0, group=self.patient)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def spread(self, tensor: Tensor) -> None:
        """Copy the first worker's tensor to all others, in place."""
        if self.count > 1:
            # A scalar step counter of the optimiser lies on the CPU, which only the gloo group reaches.
            dist.broadcast(tensor, src=0, group=self.patient if tensor.device.type == "cpu" else None)


ALONE = Workers()


class Word:
    """A small number that the first worker sends to all others without making any worker wait.

    It is sent while the next step is computed and received at that step's end, so all act on it at the same step. It
    uses the CPU's process group, so that it does not wait for a GPU.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.sent: tuple[Any, Tensor] | None = None

    def pass_on(self, value: int) -> int:
        """Send the first worker's value and return the one that the previous call sent; with one worker, return this
        one."""
        if self.workers.count == 1:
            return value
        heard = self.end()
        tensor = torch.tensor([value])
        self.sent = dist.broadcast(tensor, src=0, group=self.workers.patient, async_op=True), tensor
        return heard

    def end(self) -> int:
        """Wait for the value that is being sent and return it; 0 where there is none."""
        if self.sent is None:
            return 0
        (work, tensor), self.sent = self.sent, None
        work.wait()
        return int(tensor.item())


def start(rank: int, count: int, address: str, *, device: torch.device, timeout: float) -> Workers:
    """Join the other processes at an address such as `tcp://host:port` or `file:///path`.

    Args:
        timeout: seconds after which a collective operation of the training fails.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=count, timeout=timedelta(seconds=timeout)
    )
    return Workers.joined()
