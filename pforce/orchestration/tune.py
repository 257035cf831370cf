"""The launcher on Ray Tune: a grid of one-worker trials, each in a process of its own.

Nothing of Tune's state is needed to go on after a kill (see `launch.execute`), so its own loggers, signal
handlers and restore are off.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from pforce.executors.placement import Node, place
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.plan import Plan, payload, ray_folder
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.sweep import Work
from pforce.trial.failures import WORKER_DIED, ClusterError, Failure

# Read by ray when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial

from pforce.orchestration.tune_worker import trainable

# Nothing reads the state that Tune keeps of an experiment; its failing to (a race with its own clean-up) is no error.
logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)


class _Reports(tune.Callback):
    """Hands Tune's events to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.work = {item.fingerprint: item for item in recorder.plan.work}
        self.failing: dict[str, Failure] = {}
        """fingerprint → what its process said before it ended."""
        self.attempts: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles its run configuration for Tuner.restore, which nothing here needs; the connections to the
        # store and the terminal stay with the driver.
        return {}

    def _item(self, trial: Trial) -> Work:
        return self.work[trial.config["trial"]["fingerprint"]]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.recorder.start(self._item(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        item = self._item(trial)
        if result["phase"] == "failing":
            self.failing[item.fingerprint] = Failure(result["reason"], result["error"])
        else:
            self.recorder.report(item, result)

    def _failure(self, item: Work) -> Failure:
        return self.failing.pop(item.fingerprint, None) or Failure(
            WORKER_DIED, "the worker's process ended before its trial did"
        )

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        item = self._item(trial)
        self.attempts[item.fingerprint] += 1
        attempts = self.recorder.plan.options.retries + 1
        self.recorder.retry(item, *self._failure(item), self.attempts[item.fingerprint] + 1, attempts)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        fingerprint = self._item(trial).fingerprint
        if fingerprint in self.recorder.open and fingerprint not in self.recorder.trained:
            # Ended without "done", "trained" or "failed": stopped by the wall-clock limit.
            self.recorder.kill(fingerprint, "time limit")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        item = self._item(trial)
        if item.fingerprint in self.recorder.open and item.fingerprint not in self.recorder.trained:
            self.recorder.fail(item, *self._failure(item))


def start_ray(address: str | None = None) -> list[Node]:
    """Connect to the cluster at `address` or RAY_ADDRESS, else start one here. Returns its nodes. ClusterError where
    the cluster does not take us.

    The dashboard stays on (loopback only): without it a trial stopped by a scheduler leaks its placement group.
    """
    if not ray.is_initialized():
        wanted = address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            ray.init(address=wanted, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, RayError) as error:
            if wanted == "local":
                raise
            raise ClusterError(
                f"the cluster at {wanted} does not take this driver ({error}): is its token here "
                "(RAY_AUTH_MODE=token, and the head's ~/.ray/auth_token or RAY_AUTH_TOKEN), and the same version of "
                f"Ray? `pforce doctor --ray-address {wanted}` tells"
            ) from error
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(resources.get("CPU", 0)), resources.get("GPU", 0.0)) for resources in alive]


@contextmanager
def cluster(address: str | None) -> Iterator[list[Node]]:
    """`start_ray`, and the cluster's end after the block where this call started it."""
    ours = not ray.is_initialized()
    try:
        yield start_ray(address)
    finally:
        if ours:
            ray.shutdown()


def launch(plan: Plan, recorder: Recorder, console: Console) -> None:
    """Run what is missing on the cluster, as many trials at once as fit; ends the cluster if it started it."""
    options = plan.options
    with cluster(options.ray_address) as nodes:
        placement = place(
            len(plan.missing),
            nodes=nodes,
            cpus=options.cpus_per_trial,
            gpus=options.gpus_per_trial,
        )
        gpus = f" and {placement.gpus:g} GPU(s)" if placement.gpus else ""
        console.print(
            f"{len(plan.missing)} trials, {placement.concurrent} at a time, each on {placement.cpus} core(s){gpus}"
        )
        recorder.begin()
        trials = [payload(plan, item, placement) for item in plan.missing]
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": placement.cpus, "gpu": placement.gpus}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=placement.concurrent,
                time_budget_s=None if options.max_hours is None else options.max_hours * 3600,
                reuse_actors=True,  # a finished trial's process, with torch imported, serves the next one
            ),
            run_config=tune.RunConfig(
                name=f"{plan.sweep.name}-{os.getpid()}",
                storage_path=ray_folder(options),
                callbacks=[_Reports(recorder)],
                failure_config=tune.FailureConfig(max_failures=options.retries),
                verbose=0,
            ),
        )
        # Once more: ray.init put a handler of its own over SIGTERM, which ends the process without a clean-up.
        with stop_on_signals(restore=False):
            tuner.fit()
