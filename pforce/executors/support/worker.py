"""The loop of a worker process on Ray: it runs task after task until the rendezvous has no more."""

from __future__ import annotations

import os
import pickle
import time
import uuid
from typing import Any

import ray

from pforce.trial.perform import AttemptFailed, Performer, Seat
from pforce.trial.task import Answer, Done, Event, Failed, Handed

LOOK_SECONDS = 0.05
"""Seconds between two looks for an answer, each of which takes a tenth of a millisecond."""


class _Answers:
    """The newest answer to an attempt, without waiting: a request to the rendezvous stays open until there is one."""

    def __init__(self, rendezvous: Any, seat: int, handed: Handed) -> None:
        self.rendezvous, self.key = rendezvous, (seat, handed.task.id, handed.attempt)
        self.open: Any = None
        self.looked = 0.0

    def __call__(self) -> Answer:
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return Answer.GO_ON
        self.looked = now
        if self.open is None:
            self.open = self.rendezvous.answer.remote(*self.key)
        if not ray.wait([self.open], timeout=0)[0]:
            return Answer.GO_ON
        found, self.open = Answer(ray.get(self.open)), None
        return found


def serve(meeting: str, seat: int, on: Seat) -> None:
    """Carry out tasks until there are no more. All workers of a group call it.

    Raises AttemptFailed where this process should end; the driver then replaces it.

    Args:
        meeting: name of the rendezvous.
        seat: number of the worker's or group's seat there.
    """
    rendezvous: Any = ray.get_actor(meeting)
    name, workers, perform = uuid.uuid4().hex, on.workers, Performer(on)

    nodes = sorted(set(workers.gather(ray.get_runtime_context().get_node_id())))

    def ask() -> bytes | None:
        found: bytes | None = ray.get(rendezvous.next.remote(seat, name, nodes))
        return found

    for variable, value in ray.get(rendezvous.variables.remote()).items():
        os.environ.setdefault(variable, value)

    def report(event: Event) -> Answer:
        # Waits about a millisecond, because the process may end right after it.
        ends, content = isinstance(event, Done | Failed), pickle.dumps(event)
        return Answer(ray.get(rendezvous.report.remote(seat, event.task, event.attempt, content, ends)))

    while (content := workers.first_does(ask)) is not None:
        handed: Handed = pickle.loads(content)  # from our own driver
        try:
            perform(handed, report, _Answers(rendezvous, seat, handed))
        except AttemptFailed as error:
            if workers.count == 1:
                report(error.failed)
            else:
                ray.get(rendezvous.despair.remote(seat, pickle.dumps(error.failed)))
            raise
