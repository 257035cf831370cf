"""The driver's side of an executor on Ray: workers have seats at a rendezvous and get tasks one after the other, so
that a process, its imports and the forming of a group are paid for once. Each executor defines how its workers are
started."""

from __future__ import annotations

import os
import pickle
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pforce.base.secrets import private_folder
from pforce.base.words import counted
from pforce.executors.support.rendezvous import Rendezvous
from pforce.executors.support.setup import Hand, Listen, Setup, Tick
from pforce.executors.support.start import Cluster, draining_nodes
from pforce.trial.failures import WORKER_DIED, ClusterError, Failure, worst
from pforce.trial.task import Answer, Done, Event, Failed, Handed, Idle, Next

TICK_SECONDS = 0.25
"""Most seconds between two calls of `tick`, which notes signals."""
LOOK_SECONDS = 10.0
"""Seconds between looks at a cluster's nodes, while a task waits for a worker."""
WAITING_SECONDS = 60.0
"""Seconds without any worker after which a message says that workers wait for room."""
ENDING_SECONDS = 15.0
"""Seconds that workers may take to end, once there are no more tasks."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""Variables of the driver that workers get where their machine does not set them: keys of a bucket."""
DRAIN_SECONDS = 2.0
"""Seconds between two looks at the nodes that the cluster will lose."""
LEAVING = "a node will soon be taken from the cluster: its tasks stop at a checkpoint and go on elsewhere"
STARTS = 3
"""Number of workers per seat that may be lost in a row before any has asked for a task."""


class WorkersLost(ClusterError):
    """Workers cannot be started."""


class Gone(NamedTuple):
    """A seat whose workers have ended."""

    seat: int
    failure: Failure | None
    """The failure, as far as Ray knows; None where there were no more tasks."""
    replaced: bool = False
    """Whether another worker is being started already."""
    at: float = 0.0
    """Time at which it was noticed, on the clock of `time.monotonic`."""


class Seats(ABC):
    """Runs tasks in workers on a Ray cluster, which is started here where there is none."""

    on_cluster: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.meeting = f"pforce-{uuid.uuid4().hex}"
        self.actor: Any = None
        self.at: dict[int, Handed] = {}
        """Seat → the task that its worker has."""
        self.idle: set[int] = set()
        """Seats whose workers wait for a task."""
        self.live: set[int] = set()
        """Seats that have workers or soon will."""
        self.answers: dict[tuple[str, int], Answer] = {}
        self.kept: Handed | None = None
        """A task that waits for a worker."""
        self.given: dict[int, float] = {}
        """Seat → time at which its task was handed out."""
        self.begun_tasks: set[str] = set()
        """Tasks that were handed out."""
        self.begun = self.failed_starts = 0
        self.waiting_since: float | None = None
        """Time since which no worker is there."""
        self.said_room = False
        self.draining: set[str] = set()
        """Ids of the nodes that the cluster will lose, when it was last asked."""
        self.looked = 0.0
        self.leaving: set[int] = set()
        """Seats whose workers are on such nodes."""
        self.next_look = 0.0
        """Time of the next look at the cluster's nodes."""
        self.asked_room: PlacementGroup | None = None
        """Room for one more task, which a cluster that grows by itself adds a node for."""

    # --- defined by each executor ---------------------------------------------------------------------------------

    @abstractmethod
    def start(self, seats: list[int]) -> None:
        """Start the workers of some seats."""

    @abstractmethod
    def ended(self) -> Iterable[Gone]:
        """Seats whose workers have ended since the last call."""

    @abstractmethod
    def finish(self, seconds: float) -> None:
        """Wait until the threads of this process have ended, at most `seconds`."""

    @property
    def worker_config(self) -> dict[str, Any]:
        """Configuration of a worker as plain data: the name of the rendezvous, and the worker's resources."""
        p = self.placement
        return {"meeting": self.meeting, "threads": p.cpus, "devices": p.devices, "gpus": p.gpus}

    @property
    def here(self) -> bool:
        """Whether the cluster was started here."""
        return self.cluster.here

    # --- its life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        # Private, because it names the storage; one per user of a shared one.
        s = self.setup = replace(self.setup, scratch=private_folder(self.setup.scratch / f"user-{os.getuid()}"))
        self.cluster = Cluster(s.address)
        try:
            nodes = self.cluster.nodes
            self.placement = s.place(nodes, sum(node.cpus for node in nodes))
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor: Any = ray.remote(Rendezvous)
            options = actor.options(name=self.meeting, num_cpus=0, scheduling_strategy=here, max_concurrency=10_000)
            keys = {name: os.environ[name] for name in KEYS if name in os.environ}
            self.actor = options.remote(environment=keys)
            # They start while the driver opens its page in MLflow.
            self.live = set(range(self.placement.concurrent))
            self.start(sorted(self.live))
            self.next_look = time.monotonic() + LOOK_SECONDS
        except BaseException:
            self.cluster.leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(RayError):
                self._forget_room()
                ray.get(self.actor.close.remote(), timeout=TICK_SECONDS)
            # Ray ends this process with its own exit code where a thread that waits for workers outlives the cluster.
            self.finish(TICK_SECONDS if self.at else ENDING_SECONDS)
        finally:
            self.cluster.leave()

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self, hand: Hand, listen: Listen, tick: Tick) -> None:
        """See `Executor.run`."""
        while True:
            tick()
            news = ray.get(self.actor.news.remote(TICK_SECONDS))
            if news.begun > self.begun:
                self.begun, self.failed_starts = news.begun, 0
            for content in news.said:
                self._hear(pickle.loads(content), listen)  # from our own workers
            for gone in self.ended():
                self._gone(gone, listen)
            for seat, words in news.lost:
                self._lost(seat, words, None, listen)
            self._leave_draining(news.nodes)
            self.idle |= set(news.asking)
            if not self._hand_out(hand):
                return
            self._grow(hand)
            self._say_room()

    def push(self, answer: Answer) -> None:
        for handed in self.at.values():
            self._tell((handed.task.id, handed.attempt), answer)

    def _tell(self, key: tuple[str, int], answer: Answer) -> None:
        """Give an attempt an answer, unless that was the last one."""
        if answer is Answer.CHECKPOINT or answer is not self.answers.get(key, Answer.GO_ON):
            self.answers[key] = answer
            ray.get(self.actor.tell.remote(*key, int(answer)))

    def _hear(self, event: Event, listen: Listen) -> None:
        answer, key = listen(event), (event.task, event.attempt)
        if isinstance(event, Done | Failed):
            self.at = {seat: each for seat, each in self.at.items() if (each.task.id, each.attempt) != key}
        elif answer is not Answer.GO_ON:
            self._tell(key, answer)

    def _lost(self, seat: int, words: list[bytes], failure: Failure | None, listen: Listen) -> None:
        """Report the failure of a task whose worker or group is gone; the listener decides whether to retry it."""
        handed = self.at.pop(seat, None)
        if handed is None:
            return
        said: list[Failed] = [pickle.loads(content) for content in words]
        failures = [*(each.failure for each in said), *([failure] if failure else [])]
        cause = worst(failures) or Failure(WORKER_DIED, "the worker's process ended before its task did")
        known = next((each for each in said if each.failure == cause), None)
        listen(known or Failed(handed.task.id, handed.attempt, cause, log=said[0].log if said else None))

    def _gone(self, gone: Gone, listen: Listen) -> None:
        if gone.replaced and gone.failure is not None:
            self._failed_start(gone.failure)
            handed = self.at.get(gone.seat)
            if handed is not None and self.given[gone.seat] < gone.at:  # otherwise it is the new worker's task
                words = ray.get(self.actor.drop.remote(gone.seat, handed.task.id, handed.attempt))
                self._lost(gone.seat, words, gone.failure, listen)
            return
        words, had = ray.get(self.actor.ended.remote(gone.seat)), gone.seat in self.at
        self.idle.discard(gone.seat)
        self.live.discard(gone.seat)
        self._lost(gone.seat, words, gone.failure, listen)
        if gone.failure is not None and not had:
            self._failed_start(gone.failure)

    def _failed_start(self, failure: Failure) -> None:
        """Count a worker that was lost before it asked for a task. WorkersLost where there are too many."""
        self.failed_starts += 1
        if self.failed_starts >= STARTS * self.placement.concurrent:
            workers = f"group of {self.placement.workers} workers" if self.placement.workers > 1 else "worker"
            raise WorkersLost(f"no {workers} could be started: {failure.message}")

    def _hand_out(self, hand: Hand) -> bool:
        """Give tasks to waiting workers, and end those for whom there is none. Returns whether any task is running or
        waiting."""
        self.idle -= self.leaving
        while self.idle and (following := self._following(hand)) is not Idle.WAIT:
            seat = min(self.idle)
            self.idle.discard(seat)
            if isinstance(following, Handed):
                self.kept = None
                self._give(seat, following)
            else:
                self.live.discard(seat)
                ray.get(self.actor.release.remote(seat))
        dead = set(range(self.placement.concurrent)) - self.live
        coming = self.live - set(self.at) - self.idle
        if dead and not (self.idle or coming) and isinstance(self._following(hand), Handed):
            seat = min(dead)  # a task is retried and no worker is left for it
            self.live.add(seat)
            self.leaving.discard(seat)
            ray.get(self.actor.take_back.remote(seat))
            self.start([seat])
        return bool(self.at) or isinstance(self._following(hand), Handed)

    def _leave_draining(self, nodes: Mapping[int, Sequence[str]]) -> None:
        """Ask the tasks on nodes that the cluster will lose to stop at a checkpoint, and give these nodes no others.

        Args:
            nodes: seat → ids of its workers' nodes.
        """
        now = time.monotonic()
        if now - self.looked >= DRAIN_SECONDS:
            self.looked, self.draining = now, draining_nodes()
        for seat, own in nodes.items():
            if not self.draining.intersection(own) or seat not in self.live:
                continue
            handed = self.at.get(seat)
            if handed is not None:
                self._tell((handed.task.id, handed.attempt), Answer.CHECKPOINT_AND_STOP)
            if seat not in self.leaving:
                self.leaving.add(seat)
                self.setup.say(LEAVING)
                ray.get(self.actor.release.remote(seat))

    def _grow(self, hand: Hand) -> None:
        """Start further workers where the cluster has got nodes since, and there is a task for them."""
        if self.here or self.setup.exactly:
            return
        if self.asked_room is not None and self.asked_room.wait(0):
            self._forget_room()  # whichever worker waits takes it; those of a new node are started now
            self.next_look = 0.0
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_SECONDS
        there, nodes, most = self.placement.concurrent, self.cluster.look(), self.setup.tasks or sys.maxsize
        room = min(self.placement.room(nodes), most)
        if room > there and isinstance(self._following(hand), Handed):
            self._forget_room()
            self.placement = replace(self.placement, concurrent=room)
            further = list(range(there, room))
            self.live |= set(further)
            self.start(further)
            self.setup.say(f"the cluster has grown to {counted(len(nodes), 'node')}: {room} at a time")
        else:
            self._ask_room(there)

    def _ask_room(self, there: int) -> None:
        """Ask for room for one more task while any waits, as a cluster that grows by itself adds nodes for what is
        asked for. Ray forgets it when this process ends.

        Args:
            there: tasks for which there are workers.
        """
        if len(self.begun_tasks) >= (self.setup.tasks or 0):
            self._forget_room()
        elif self.asked_room is None and there < (self.setup.tasks or 0) and set(self.at) == self.live:
            bundles = [self.placement.resources] * self.placement.workers
            self.asked_room = placement_group(bundles, strategy="STRICT_SPREAD" if self.placement.spread else "PACK")

    def _forget_room(self) -> None:
        if self.asked_room is not None:
            remove_placement_group(self.asked_room)
            self.asked_room = None

    def _following(self, hand: Hand) -> Next:
        """The next task, which is kept until a worker takes it."""
        following = self.kept or hand()
        if isinstance(following, Handed):
            self.kept = following
        return following

    def _give(self, seat: int, handed: Handed) -> None:
        self.at[seat], self.given[seat] = handed, time.monotonic()
        self.begun_tasks.add(handed.task.id)
        content = ray.cloudpickle.dumps(handed)
        ray.get(self.actor.give.remote(seat, handed.task.id, handed.attempt, content))

    def _say_room(self) -> None:
        """Tell the user once that workers wait for room, as they may wait for ever."""
        if self.at or self.idle or not self.live:
            self.waiting_since, self.said_room = None, False
            return
        now = time.monotonic()
        self.waiting_since = self.waiting_since or now
        if self.said_room or now - self.waiting_since < WAITING_SECONDS:
            return
        self.said_room = True
        free, placement = ray.available_resources(), self.placement
        gpus = f" and {counted(placement.gpus, 'GPU')}" if placement.gpus else ""
        self.setup.say(
            f"waiting for room for {counted(placement.workers, 'worker')} of "
            f"{counted(placement.cpus, 'core')}{gpus}: the cluster has "
            f"{free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs free on "
            f"{counted(sum(node['Alive'] for node in ray.nodes()), 'node')}"
        )
