"""What a sweep costs besides training and evaluation: Ray's start, and each trial's fixed cost.

Trials run one at a time. The first pays for its process and the import of torch; later ones reuse it.
Fixed cost = (seconds of the Tune run − training and evaluation seconds of its trials) / trials.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from rich.console import Console

from pforce import results
from pforce.catalog import experiment
from pforce.config import with_fields
from pforce.orchestration import tune
from pforce.orchestration.launch import execute
from pforce.orchestration.plan import Options, plan
from pforce.orchestration.sweep import Axis, Sweep

SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.heads": 2,
    "training.images": 640,
    "evaluation.images": 16,
    "evaluation.validation_images": 64,
    "sampler.num_function_evaluations": 4,
}


def fixed_seconds(trials: int, name: str) -> tuple[float, float]:
    """(seconds of a sweep's Tune run, the same less its trials' own seconds)."""
    base = with_fields(experiment("openmoji32_micro"), SMALL)
    sweep = Sweep(name, base, (Axis("timesteps.m", tuple(0.1 * k for k in range(trials))),))
    console = Console(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(sweep, Options(storage=Path(folder), cpus_per_trial=os.cpu_count()), console)
        started = time.perf_counter()
        assert execute(planned, console, tune.launch) == 0
        seconds = time.perf_counter() - started
        own = results.runs(planned.options.uri)["cost/seconds"].sum()
    return seconds, seconds - own


def main() -> None:
    started = time.perf_counter()
    tune.start_ray("local")
    print(f"Ray's start: {time.perf_counter() - started:.1f} s")
    for trials in (1, 1, 4, 4):
        seconds, fixed = fixed_seconds(trials, f"n{trials}")
        print(f"{trials} trial(s): {seconds:.1f} s, of which fixed {fixed:.1f} s = {fixed / trials:.1f} s a trial")
    tune.ray.shutdown()


if __name__ == "__main__":
    main()
