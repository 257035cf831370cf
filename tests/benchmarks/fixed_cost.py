"""What a sweep costs besides training and evaluation: Ray's start, and each trial's fixed cost.

Trials run one at a time. The first pays for its processes and the import of torch; later ones reuse them. With two
workers a trial runs through Ray Train's TorchTrainer.
Fixed cost = (seconds of the launcher − training and evaluation seconds of its trials) / trials.
"""

from __future__ import annotations

import os
import tempfile
import time
from statistics import median

from rich.console import Console

from pforce import results
from pforce.catalog import experiment
from pforce.config import with_fields
from pforce.orchestration import groups, tune
from pforce.orchestration.launch import execute
from pforce.orchestration.plan import Options, plan
from pforce.orchestration.sweep import Axis, Sweep

ROUNDS = 4
SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.heads": 2,
    "training.images": 640,
    "evaluation.images": 16,
    "evaluation.validation_images": 64,
    "sampler.num_function_evaluations": 4,
}


def fixed_seconds(trials: int, name: str, workers: int = 1) -> tuple[float, float]:
    """(seconds of a sweep's run, the same less its trials' own seconds)."""
    base = with_fields(experiment("openmoji32_micro"), SMALL)
    sweep = Sweep(name, base, (Axis("timesteps.m", tuple(0.1 * k for k in range(trials))),))
    console = Console(quiet=True)
    cores = (os.cpu_count() or 1) // workers
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(sweep, Options(storage=folder, cpus_per_trial=cores, workers=workers), console)
        started = time.perf_counter()
        assert execute(planned, console, tune.launch if workers == 1 else groups.launch) == 0
        seconds = time.perf_counter() - started
        own = results.runs(planned.options.uri)["cost/seconds"].sum()
    return seconds, seconds - own


def main() -> None:
    started = time.perf_counter()
    tune.start_ray("local")
    print(f"Ray's start: {time.perf_counter() - started:.1f} s")
    for workers in (1, 2):
        for trials in (1, 4):
            costs = [fixed_seconds(trials, f"w{workers}-t{trials}-{n}", workers)[1] / trials for n in range(ROUNDS)]
            spread = f"{median(costs):.1f} s ({min(costs):.1f} … {max(costs):.1f}, n = {ROUNDS})"
            print(f"{workers} worker(s), {trials} trial(s) one after the other: a trial {spread}", flush=True)
    tune.ray.shutdown()


if __name__ == "__main__":
    main()
