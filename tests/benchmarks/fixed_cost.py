"""What a sweep costs besides training and evaluation: Ray's start, and each trial's fixed cost.

A lone trial pays for its processes and the import of torch: on a cluster of its own, as `pforce train` has it, and on
one that is up, where none of its processes have been started. Of four trials one after the other the later ones reuse
the first one's. With two workers a trial runs through Ray Train's TorchTrainer.
Fixed cost = (seconds of the launcher − training and evaluation seconds of its trials) / trials.
"""

from __future__ import annotations

import os
import tempfile
import time
from statistics import median

import ray

from pforce import results
from pforce.base.console import make_console
from pforce.base.words import counted
from pforce.catalog import experiment
from pforce.config import with_fields
from pforce.executors.support.start import start_ray
from pforce.orchestration.axes import Axis
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import plan
from pforce.orchestration.sweep import Sweep

ROUNDS = 4
SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.heads": 2,
    "training.images": 640,
    "evaluation.images": 16,
    "evaluation.held_out_images": 64,
    "evaluation.label_images": 64,
    "evaluation.reference_images": 64,
    "sampler.num_function_evaluations": 4,
}


def fixed_seconds(trials: int, name: str, workers: int = 1) -> tuple[float, float]:
    """(seconds of a sweep's run, the same less its trials' own seconds)."""
    base = with_fields(experiment("openmoji32_micro"), SMALL)
    sweep = Sweep(name, base, (Axis("timesteps.m", tuple(0.1 * k for k in range(trials))),))
    console = make_console(quiet=True)
    cores = (os.cpu_count() or 1) // workers
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(sweep, Options(storage=folder, cpus_per_trial=cores, workers=workers), console)
        started = time.perf_counter()
        assert execute(planned, console, "tune" if workers == 1 else "groups") == 0
        seconds = time.perf_counter() - started
        own = results.runs(planned.options.uri)["cost/seconds"].sum()
    return seconds, seconds - own


def show(what: str, costs: list[float]) -> None:
    print(f"{what}: {median(costs):.1f} s ({min(costs):.1f} … {max(costs):.1f}, n = {len(costs)})", flush=True)


def main() -> None:
    starts = []
    for workers in (1, 2):
        costs = []
        for number in range(ROUNDS):
            started = time.perf_counter()
            start_ray("local")
            starts.append(time.perf_counter() - started)
            costs.append(fixed_seconds(1, f"w{workers}-own-{number}", workers)[1])
            ray.shutdown()
        show(f"{counted(workers, 'worker')}, a lone trial on a cluster of its own", costs)
    show("Ray's start", starts)
    start_ray("local")
    for workers in (1, 2):
        for trials, what in ((1, "a lone trial on a cluster that is up"), (4, "4 trials one after the other, a trial")):
            names = [f"w{workers}-t{trials}-{number}" for number in range(ROUNDS)]
            show(
                f"{counted(workers, 'worker')}, {what}",
                [fixed_seconds(trials, name, workers)[1] / trials for name in names],
            )
    ray.shutdown()


if __name__ == "__main__":
    main()
