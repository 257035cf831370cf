"""Where workers on Ray take their tasks from and leave what they say: an actor on the driver's node.

A module of its own that imports nothing of ours: its process starts beside the workers', on the same cores. Tasks and
events pass through it as bytes. Answers lie here, so a report waits for the actor, never for the driver.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

STOP = 2
"""`Answer.CHECKPOINT_AND_STOP`."""


class News(NamedTuple):
    """What has happened since the driver last asked."""

    said: list[bytes]
    """Events, in order."""
    asking: list[int]
    """Seats whose workers have begun to wait for a task."""
    lost: list[tuple[int, list[bytes]]]
    """Seats at which another worker has taken the place of one that had a task, and the last words of that one."""
    begun: int
    """How many workers have come, ever."""


@dataclass
class Rendezvous:
    """Hands out tasks that the driver leaves, and keeps events until it takes them. A seat is a place for a worker, or
    for a group of them; one that takes a lost one's place has its number."""

    said: list[bytes] = field(default_factory=list)
    asking: list[int] = field(default_factory=list)
    left: dict[int, bytes] = field(default_factory=dict)
    """Seat → task that waits to be fetched."""
    at: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Seat → task and attempt that its worker has."""
    answers: dict[tuple[str, int], int] = field(default_factory=dict)
    newest: dict[int, str] = field(default_factory=dict)
    """Seat → name of its newest worker."""
    words: dict[int, list[bytes]] = field(default_factory=dict)
    """Seat → why workers of its group have ended, as each saw it."""
    lost: list[tuple[int, list[bytes]]] = field(default_factory=list)
    begun: int = 0
    released: set[int] = field(default_factory=set)
    """Seats whose workers end."""
    closed: bool = False

    def __post_init__(self) -> None:
        self.changed = asyncio.Condition()

    # --- workers --------------------------------------------------------------------------------------------------

    async def next(self, seat: int, worker: str) -> bytes | None:
        """The next task for a worker, as soon as there is one; None where there will be none.

        Args:
            worker: names this process.
        """
        async with self.changed:
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
        """An event of a worker's. Returns what to do.

        Args:
            ends: whether it ends the attempt.
        """
        async with self.changed:
            self.said.append(event)
            if ends and self.at.get(seat) == (task, attempt):
                del self.at[seat]
            self.changed.notify_all()
            return STOP if self.closed else self.answers.get((task, attempt), 0)

    async def despair(self, seat: int, event: bytes) -> None:
        """Why a worker of a group ends. Which of them is the cause the driver decides, when the group is gone."""
        self.words.setdefault(seat, []).append(event)

    # --- the driver -----------------------------------------------------------------------------------------------

    async def news(self, seconds: float) -> News:
        """What has happened since the last call, as soon as something has, or after some seconds."""
        async with self.changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: bool(self.said or self.asking or self.lost)), seconds
                )
            found = News(self.said, self.asking, self.lost, self.begun)
            self.said, self.asking, self.lost = [], [], []
            return found

    async def give(self, seat: int, task: str, attempt: int, content: bytes) -> None:
        """Leave a task for a seat."""
        async with self.changed:
            self.left[seat], self.at[seat] = content, (task, attempt)
            self.released.discard(seat)
            self.changed.notify_all()

    async def tell(self, task: str, attempt: int, answer: int) -> None:
        """Answer an attempt's reports so from now on."""
        self.answers[task, attempt] = answer

    async def drop(self, seat: int, task: str, attempt: int) -> list[bytes]:
        """The worker that had a task is gone, and another one comes. Returns the last words of the one before."""
        async with self.changed:
            if self.at.get(seat) == (task, attempt):
                del self.at[seat]
                self.left.pop(seat, None)
            return self.words.pop(seat, [])

    async def ended(self, seat: int) -> list[bytes]:
        """The workers of a seat are gone. Returns their last words."""
        async with self.changed:
            for known in (self.left, self.at, self.newest):
                known.pop(seat, None)
            self.asking = [each for each in self.asking if each != seat]
            return self.words.pop(seat, [])

    async def release(self, seat: int) -> None:
        """There are no more tasks for a seat: its worker ends, and what it held is free for others."""
        async with self.changed:
            self.released.add(seat)
            self.changed.notify_all()

    async def take_back(self, seat: int) -> None:
        """A seat is to have a worker again."""
        self.released.discard(seat)

    async def close(self) -> None:
        """Every worker ends: at its next report, if it is at a task."""
        async with self.changed:
            self.closed = True
            self.changed.notify_all()
