"""The executor with processes of this machine, without Ray: on its cores, or on its GPUs, which several small trainings
may share (`--gpus-per-trial 0.25`). Neither Ray, MLflow nor pydantic needs to be installed."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from functools import partial
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, ClassVar, Self

import torch

from pforce.base.console import leave_signals_to_driver
from pforce.executors.support.placement import Placement, this_machine
from pforce.executors.support.setup import Hand, Listen, Setup, Tick, here_only, one_worker
from pforce.trial.failures import WORKER_DIED, Failure
from pforce.trial.perform import AttemptFailed, Performer, Seat
from pforce.trial.task import Answer, Done, Event, Failed, Handed, Idle

STARTS = multiprocessing.get_context("forkserver")
"""Where processes come from: a server that has imported all that they need, and has touched no GPU, which they may."""
STARTS.set_forkserver_preload(["pforce.executors.support.preload"])
FREE = Idle.WAIT
"""Message of a process that is ready for another task."""
TICK_SECONDS = 0.25
"""Most seconds between two calls of `tick`, which notes signals."""
ENDING_SECONDS = 5.0
"""Seconds that a process without further tasks may take to end."""


class _Process:
    """A worker process and its task."""

    def __init__(self, seat: int, placement: Placement) -> None:
        self.seat = seat
        self.pipe, theirs = STARTS.Pipe()
        self.at: Handed | None = None
        self.free = True
        """Whether it is ready for a task; after a failure it may be about to end."""
        self.answer = Answer.GO_ON
        """The last answer that was sent for its task."""
        shares = max(1, int(1 / placement.gpus + 1e-9)) if 0 < placement.gpus < 1 else 1
        first = seat // shares if placement.gpus < 1 else seat * int(placement.gpus)
        devices = range(first, first + max(1, int(placement.gpus))) if placement.gpus else ()
        arguments = (theirs, placement.cpus, placement.devices, [*devices])
        self.process = STARTS.Process(target=_work, args=arguments, daemon=True, name=f"pforce-worker-{seat}")
        self.process.start()
        theirs.close()

    def give(self, handed: Handed) -> None:
        """Send it a task."""
        self.at, self.answer, self.free = handed, Answer.GO_ON, False
        self._send(handed)

    def tell(self, answer: Answer) -> None:
        """Send an answer to its work, unless that was the last one."""
        if self.at is not None and (answer is Answer.CHECKPOINT or answer is not self.answer):
            self.answer = answer
            self._send((self.at.task.id, self.at.attempt, answer))

    def _send(self, message: object) -> None:
        try:
            self.pipe.send(message)
        except OSError:  # it has died, which the loop notices
            return

    def events(self) -> list[Event]:
        """Its events since the last call."""
        found: list[Event] = []
        try:
            while self.pipe.poll():
                said = self.pipe.recv()
                if said is FREE:
                    self.free = True
                else:
                    found.append(said)
        except (EOFError, OSError):  # it has died
            pass
        return found

    def death(self) -> Failure:
        """The failure for its end, as far as that is known."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Failure(WORKER_DIED, f"the worker's process ended {how} before its task did")


class Executor:
    """Runs tasks in processes, each of which runs one task after the other."""

    on_cluster: ClassVar[bool] = False
    here = True

    def __init__(self, setup: Setup) -> None:
        one_worker("processes", setup)
        here_only("processes", setup)
        self.setup = setup
        self.processes: dict[int, _Process] = {}

    def __enter__(self) -> Self:
        here = this_machine()
        self.placement = self.setup.place([here], here.cpus)
        for seat in range(self.placement.concurrent):  # they start while the driver opens its page in MLflow
            self.processes[seat] = _Process(seat, self.placement)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self.processes.values():
            each.pipe.close()  # so that it learns that there are no more tasks
        for each in self.processes.values():
            if kind is None:
                each.process.join(ENDING_SECONDS)
            if each.process.is_alive():
                each.process.kill()
            each.process.join()

    def run(self, hand: Hand, listen: Listen, tick: Tick) -> None:
        while True:
            tick()
            self._hand_out(hand)
            if all(each.free for each in self.processes.values()):
                return
            waiting: list[Any] = [each.pipe for each in self.processes.values()]
            wait([*waiting, *(each.process.sentinel for each in self.processes.values())], TICK_SECONDS)
            for each in list(self.processes.values()):
                alive = each.process.is_alive()  # checked before its last events are read
                self._listen(each, listen)
                if not alive:
                    self._listen(each, listen)
                    del self.processes[each.seat]
                    if each.at is not None:
                        listen(Failed(each.at.task.id, each.at.attempt, each.death()))

    def push(self, answer: Answer) -> None:
        for each in self.processes.values():
            each.tell(answer)

    def _hand_out(self, hand: Hand) -> None:
        for seat in range(self.placement.concurrent):
            process = self.processes.get(seat)
            if process is not None and not process.free:
                continue
            handed = hand()
            if isinstance(handed, Idle):
                return
            if process is None:
                process = self.processes[seat] = _Process(seat, self.placement)
            process.give(handed)

    def _listen(self, process: _Process, listen: Listen) -> None:
        for event in process.events():
            answer = listen(event)
            if isinstance(event, Done | Failed):
                process.at = None
            else:
                process.tell(answer)


# --- in the process itself ------------------------------------------------------------------------------------------


class _Driver:
    """A worker process's end of the pipe. Reports do not wait: the answer is the last one received."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.events: queue.SimpleQueue[Event | Idle | None] = queue.SimpleQueue()
        self.answers: dict[tuple[str, int], Answer] = {}
        self.gone = False
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()

    def _send(self) -> None:
        while (event := self.events.get()) is not None:
            try:
                self.pipe.send(event)
            except OSError:
                self.gone = True

    def next(self) -> Handed | None:
        """The next task; None where the driver has no more or is gone."""
        while True:
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):
                return None
            if isinstance(message, Handed):
                return message
            self._note(message)

    def free(self) -> None:
        """Report that this process is ready for another task."""
        self.events.put(FREE)

    def _note(self, message: tuple[str, int, Answer]) -> None:
        task, attempt, answer = message
        self.answers[task, attempt] = max(answer, self.answers.get((task, attempt), Answer.GO_ON))

    def report(self, event: Event) -> Answer:
        """Report an event to the driver. Where the driver is gone, the work stops at a checkpoint, as another driver
        may want it."""
        self.events.put(event)
        return self.newest(event.task, event.attempt)

    def newest(self, task: str, attempt: int) -> Answer:
        """The newest answer, without waiting. CHECKPOINT is given once, other answers from then on."""
        try:
            while self.pipe.poll():
                self._note(self.pipe.recv())
        except (EOFError, OSError):
            self.gone = True
        if self.gone:
            return Answer.CHECKPOINT_AND_STOP
        found = self.answers.get((task, attempt), Answer.GO_ON)
        if found is Answer.CHECKPOINT:
            del self.answers[task, attempt]
        return found

    def end(self) -> None:
        """Wait until all reports are sent."""
        self.events.put(None)
        self.thread.join()


def _work(pipe: Connection, threads: int, devices: float, gpus: list[int]) -> None:
    """Main function of a worker process: runs task after task."""
    leave_signals_to_driver()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        known = visible.split(",") if visible else None
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(known[gpu] if known else str(gpu) for gpu in gpus)
    perform = Performer(Seat(torch.device("cuda" if gpus else "cpu"), threads, devices))
    driver = _Driver(pipe)
    while (handed := driver.next()) is not None:
        try:
            perform(handed, driver.report, partial(driver.newest, handed.task.id, handed.attempt))
        except AttemptFailed as error:
            driver.report(error.failed)
            break
        driver.free()
    driver.end()
