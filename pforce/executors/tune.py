"""The executor on Ray Tune: tasks of one process each, on an existing cluster or one that is started here.

A Tune trial is a worker, not a task: it runs one task after the other from the rendezvous, so that its process and its
imports are paid for once, and tasks may be added while it runs. Tune starts the workers, places them, and restarts lost
ones; the loop in `pforce.orchestration.drive` decides about lost tasks.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

from pforce.executors.support.entry import alone
from pforce.executors.support.seats import KEYS, Gone, Seats
from pforce.executors.support.setup import Setup, one_worker
from pforce.trial.failures import OUT_OF_MEMORY, WORKER_DIED, Failure, failure_of

# Tune hands a bucket's keys to its workers in a runtime environment, which is part of their command lines, for every
# user of the machine to read. The rendezvous hands them over instead.
getattr(class_cache, "ENV_VARS_TO_PROPAGATE", set()).difference_update(KEYS)


class _Losses(TrialProgressCallback):
    """Notes lost workers before Tune restarts them. It replaces the callback that prints a line for every worker that
    ends, whatever the verbosity."""

    def __init__(self, losses: SimpleQueue[Gone]) -> None:
        super().__init__()
        self.losses = losses

    def log_result(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its run configuration for Tuner.restore, which is not used here

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = str(trial.get_error() or "")
        if "memory pressure" in error or "OutOfMemoryError" in error:
            failure = Failure(OUT_OF_MEMORY, "Ray ended the worker because the node's memory was exhausted")
        else:
            failure = Failure(WORKER_DIED, "the worker's process ended before its task did")
        self.losses.put(Gone(trial.config["seat"], failure, replaced=True, at=time.monotonic()))


class _NoMore(tune.Stopper):
    """Stops workers that still wait for room when there are no more tasks."""

    def __init__(self, over: threading.Event) -> None:
        self.over = over

    def __reduce__(self) -> tuple[Any, ...]:
        return tune.stopper.NoopStopper, ()  # as `_Losses`

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.over.is_set()


class _Workers(threading.Thread):
    """One Tuner in a thread of the driver, because Ray sets no signal handlers outside the main thread."""

    def __init__(self, executor: Executor, seats: list[int]) -> None:
        super().__init__(daemon=True, name=f"tune-{seats[0]}")
        self.seats = seats
        self.error: Exception | None = None
        setup, placement = executor.setup, executor.placement
        self.tuner = tune.Tuner(
            tune.with_resources(alone, tune.PlacementGroupFactory([placement.resources])),
            param_space={**executor.worker_config, "seat": tune.grid_search(seats)},
            tune_config=tune.TuneConfig(max_concurrent_trials=len(seats)),
            run_config=tune.RunConfig(
                name=f"{setup.name}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
                storage_path=str(setup.scratch),
                callbacks=[_Losses(executor.losses)],
                stop=_NoMore(executor.over),
                failure_config=tune.FailureConfig(max_failures=-1),
                verbose=0,
            ),
        )

    def run(self) -> None:
        try:
            self.tuner.fit()
        except Exception as error:  # the driver's loop looks at it
            self.error = error


class Executor(Seats):
    """Runs tasks in workers that Ray Tune starts."""

    def __init__(self, setup: Setup) -> None:
        one_worker("tune", setup)
        super().__init__(setup)
        self.losses: SimpleQueue[Gone] = SimpleQueue()
        self.over = threading.Event()
        self.threads: list[_Workers] = []

    def start(self, seats: list[int]) -> None:
        self.threads.append(_Workers(self, seats))
        self.threads[-1].start()

    def ended(self) -> Iterable[Gone]:
        while True:
            try:
                yield self.losses.get_nowait()
            except Empty:
                break
        for thread in [each for each in self.threads if not each.is_alive()]:
            self.threads.remove(thread)
            newer = {seat for each in self.threads for seat in each.seats}
            failure = failure_of(thread.error) if thread.error else None
            yield from (Gone(seat, failure) for seat in thread.seats if seat not in newer and seat in self.live)

    def finish(self, seconds: float) -> None:
        self.over.set()
        until = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
