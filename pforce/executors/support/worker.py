"""The loop of a worker process on Ray: it runs task after task until the rendezvous has no more."""

from __future__ import annotations

import os
import pickle
import uuid
from typing import Any

import ray

from pforce.trial.perform import AttemptFailed, Performer, Seat
from pforce.trial.task import Answer, Done, Event, Failed, Handed


def serve(meeting: str, seat: int, on: Seat) -> None:
    """Carry out tasks until there are no more. All workers of a group call it.

    Raises AttemptFailed where this process should end; the driver then replaces it.

    Args:
        meeting: name of the rendezvous.
        seat: number of the worker's or group's seat there.
    """
    rendezvous: Any = ray.get_actor(meeting)
    name, workers, perform = uuid.uuid4().hex, on.workers, Performer(on)

    def ask() -> bytes | None:
        found: bytes | None = ray.get(rendezvous.next.remote(seat, name))
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
            perform(handed, report)
        except AttemptFailed as error:
            if workers.count == 1:
                report(error.failed)
            else:
                ray.get(rendezvous.despair.remote(seat, pickle.dumps(error.failed)))
            raise
