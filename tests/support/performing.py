"""Tasks carried out in the test's own process, as an executor's worker does."""

from __future__ import annotations

import torch

from pforce.trial.measurable import Measurable
from pforce.trial.perform import Performer, Seat
from pforce.trial.task import Answer, Done, Event, Failed, Handed, Measure, Task


def seat(**fields) -> Seat:
    return Seat(torch.device("cpu"), torch.get_num_threads(), float(torch.get_num_threads()), own=False, **fields)


def events_of(task: Task, performer: Performer | None = None) -> list[Event]:
    """All that an attempt says."""
    events: list[Event] = []

    def report(event: Event) -> Answer:
        events.append(event)
        return Answer.GO_ON

    (performer or Performer(seat()))(Handed(task, 1), report)
    return events


def done(task: Task, performer: Performer | None = None) -> Done:
    """What a task comes to, which must be well."""
    last = events_of(task, performer)[-1]
    assert isinstance(last, Done), last.traceback if isinstance(last, Failed) else last
    return last


def measured(model: Measurable) -> dict[str, float]:
    """All that a model's request asks for."""
    return dict(done(Measure("all", "all", model)).metrics)
