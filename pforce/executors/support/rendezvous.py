"""The rendezvous, an actor on the driver's node: workers on Ray get their tasks from it and report their events to it.

The module imports nothing of pforce, because its process starts beside the workers', on the same cores. Tasks and
events pass through it as bytes. It holds the answers, so a report waits for the actor, never for the driver.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

CHECKPOINT, STOP = 1, 2
"""Values of `Answer.CHECKPOINT` and `Answer.CHECKPOINT_AND_STOP`."""


class News(NamedTuple):
    """Events since the driver's last request."""

    said: list[bytes]
    """Workers' events, in order."""
    asking: list[int]
    """Seats whose workers now wait for a task."""
    lost: list[tuple[int, list[bytes]]]
    """Seats at which a new worker has replaced one that had a task, with the final errors of that one."""
    begun: int
    """Number of workers that have ever come."""
    nodes: dict[int, list[str]]
    """Seat → ids of the nodes of its workers."""


@dataclass
class Rendezvous:
    """Hands out tasks that the driver leaves, and keeps events until the driver takes them. A seat is a place for a
    worker or a group of workers; a replacement has the seat of the lost one."""

    said: list[bytes] = field(default_factory=list)
    asking: list[int] = field(default_factory=list)
    left: dict[int, bytes] = field(default_factory=dict, repr=False)
    """Seat → task that waits to be fetched."""
    at: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Seat → id and attempt of its worker's task."""
    answers: dict[tuple[str, int], int] = field(default_factory=dict)
    newest: dict[int, str] = field(default_factory=dict)
    """Seat → name of its newest worker."""
    nodes: dict[int, list[str]] = field(default_factory=dict)
    """Seat → ids of the nodes of its workers."""
    words: dict[int, list[bytes]] = field(default_factory=dict)
    """Seat → final errors of the workers of its group."""
    lost: list[tuple[int, list[bytes]]] = field(default_factory=list)
    begun: int = 0
    released: set[int] = field(default_factory=set)
    """Seats whose workers are to end."""
    closed: bool = False
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables of the driver's environment that workers need where their machine has not set them. Not in the text of
    this object, which Ray writes into its logs."""

    def __post_init__(self) -> None:
        self.changed = asyncio.Condition()

    # --- workers --------------------------------------------------------------------------------------------------

    async def variables(self) -> dict[str, str]:
        """The variables of the driver's environment."""
        return self.environment

    async def next(self, seat: int, worker: str, nodes: list[str]) -> bytes | None:
        """Wait for the next task for a worker; None where there will be none.

        Args:
            worker: unique name of the worker's process.
            nodes: ids of its nodes; of a group, of all its workers' nodes.
        """
        async with self.changed:
            self.nodes[seat] = nodes
            if self.newest.get(seat) != worker:
                self.newest[seat] = worker
                self.begun += 1
                if seat in self.at and seat not in self.left:
                    del self.at[seat]
                    self.lost.append((seat, self.words.pop(seat, [])))
            if seat not in self.left:
                self.asking.append(seat)
            self.changed.notify_all()
            await self.changed.wait_for(
                lambda: self.closed or {seat} & {*self.left, *self.released} or self.newest.get(seat) != worker
            )
            return self.left.pop(seat, None) if self.newest.get(seat) == worker else None

    async def report(self, seat: int, task: str, attempt: int, event: bytes, ends: bool) -> int:
        """Take an event of a worker. Returns the answer.

        Args:
            ends: whether the event ends the attempt.
        """
        async with self.changed:
            self.said.append(event)
            if ends and self.at.get(seat) == (task, attempt):
                del self.at[seat]
            self.changed.notify_all()
            return self._answer(task, attempt)

    def _answer(self, task: str, attempt: int) -> int:
        """The answer to an attempt. CHECKPOINT is given once, other answers from then on."""
        if self.closed:
            return STOP
        found = self.answers.get((task, attempt), 0)
        if found == CHECKPOINT:
            del self.answers[task, attempt]
        return found

    async def answer(self, seat: int, task: str, attempt: int) -> int:
        """Wait for an answer that is not 0 (go on), and return it; 0 where the attempt has ended."""
        async with self.changed:
            await self.changed.wait_for(
                lambda: self.closed or (task, attempt) in self.answers or self.at.get(seat) != (task, attempt)
            )
            return self._answer(task, attempt)

    async def despair(self, seat: int, event: bytes) -> None:
        """Take the final error of a worker of a group. When the group is gone, the driver decides which worker's error
        was the cause."""
        self.words.setdefault(seat, []).append(event)

    # --- the driver -----------------------------------------------------------------------------------------------

    async def news(self, seconds: float) -> News:
        """Events since the last call, as soon as there are any, at the latest after `seconds`."""
        async with self.changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: bool(self.said or self.asking or self.lost)), seconds
                )
            found = News(self.said, self.asking, self.lost, self.begun, dict(self.nodes))
            self.said, self.asking, self.lost = [], [], []
            return found

    async def give(self, seat: int, task: str, attempt: int, content: bytes) -> None:
        """Leave a task for a seat's worker."""
        async with self.changed:
            self.left[seat], self.at[seat] = content, (task, attempt)
            self.released.discard(seat)
            self.changed.notify_all()

    async def tell(self, task: str, attempt: int, answer: int) -> None:
        """Set the answer to an attempt from now on."""
        async with self.changed:
            self.answers[task, attempt] = answer
            self.changed.notify_all()

    async def drop(self, seat: int, task: str, attempt: int) -> list[bytes]:
        """Note that the worker with a task is gone and is being replaced. Returns its final errors."""
        async with self.changed:
            if self.at.get(seat) == (task, attempt):
                del self.at[seat]
                self.left.pop(seat, None)
                self.changed.notify_all()
            return self.words.pop(seat, [])

    async def ended(self, seat: int) -> list[bytes]:
        """Note that the workers of a seat are gone. Returns their final errors."""
        async with self.changed:
            for known in (self.left, self.at, self.newest, self.nodes):
                known.pop(seat, None)
            self.asking = [each for each in self.asking if each != seat]
            self.changed.notify_all()
            return self.words.pop(seat, [])

    async def release(self, seat: int) -> None:
        """End a seat's worker, as there are no more tasks for it, and free its resources."""
        async with self.changed:
            self.released.add(seat)
            self.changed.notify_all()

    async def take_back(self, seat: int) -> None:
        """Note that a seat gets a worker again."""
        self.released.discard(seat)
        self.nodes.pop(seat, None)  # of the lost worker

    async def close(self) -> None:
        """End all workers, those with a task at their next report."""
        async with self.changed:
            self.closed = True
            self.changed.notify_all()
