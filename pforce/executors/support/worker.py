"""What runs in a worker's process on Ray: task after task, until the rendezvous has no more."""

from __future__ import annotations

import pickle
import uuid
from typing import Any

import ray

from pforce.trial.perform import AttemptFailed, Performer, Seat
from pforce.trial.task import Answer, Done, Event, Failed, Handed


def serve(meeting: str, seat: int, on: Seat) -> None:
    """Carry out tasks until there are no more. All workers of a group call it.

    AttemptFailed where this process should end: the driver has another one take its place.

    Args:
        meeting: name of the rendezvous.
        seat: number of the worker's, or the group's, place there.
    """
    rendezvous: Any = ray.get_actor(meeting)
    name, workers, perform = uuid.uuid4().hex, on.workers, Performer(on)

    def ask() -> bytes | None:
        found: bytes | None = ray.get(rendezvous.next.remote(seat, name))
        return found

    def report(event: Event) -> Answer:
        # Awaited: the process may be gone right after it. About a millisecond.
        ends, content = isinstance(event, Done | Failed), pickle.dumps(event)
        return Answer(ray.get(rendezvous.report.remote(seat, event.task, event.attempt, content, ends)))

    while (content := workers.first_does(ask)) is not None:
        handed: Handed = pickle.loads(content)  # from our own driver
        try:
            perform(handed, report)
        except AttemptFailed as error:
            if workers.count == 1:
                report(error.failed)
            else:
                ray.get(rendezvous.despair.remote(seat, pickle.dumps(error.failed)))
            raise
