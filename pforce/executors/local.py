"""The executor in this process: one task after the other, on all cores or the first GPU. For debugging, and for a
single task."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import ClassVar, Self

import torch

from pforce.executors.support.placement import this_machine
from pforce.executors.support.setup import Hand, Listen, Setup, Tick, here_only, one_worker
from pforce.trial.perform import AttemptFailed, Performer, Seat
from pforce.trial.task import Answer, Event, Handed


class Executor:
    """Runs tasks in this process. `tick` is called whenever a task reports."""

    on_cluster: ClassVar[bool] = False
    name: ClassVar[str] = "local"
    here = True

    def __init__(self, setup: Setup) -> None:
        one_worker(self.name, setup)
        here_only(self.name, setup)
        self.setup = setup
        self.pushed = Answer.GO_ON

    def __enter__(self) -> Self:
        self.placement = replace(self.setup, tasks=1, exactly=False).place([this_machine()], 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def run(self, hand: Hand, listen: Listen, tick: Tick) -> None:
        placement = self.placement
        device = torch.device("cuda" if placement.gpus else "cpu")
        perform = Performer(Seat(device, placement.cpus, placement.devices, own=False, callbacks=self.setup.callbacks))

        def report(event: Event) -> Answer:
            answer = listen(event)
            tick()
            return answer

        def newest() -> Answer:
            tick()  # which notes a signal
            answer, self.pushed = self.pushed, Answer.GO_ON
            return answer

        threads = torch.get_num_threads()
        try:
            while isinstance(handed := hand(), Handed):
                tick()
                self.pushed = Answer.GO_ON
                try:
                    perform(handed, report, newest)
                except AttemptFailed as error:  # there is no other process that could continue
                    listen(error.failed)
        finally:
            torch.set_num_threads(threads)

    def push(self, answer: Answer) -> None:
        self.pushed = max(self.pushed, answer)
