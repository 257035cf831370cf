"""Many short trials: a sweep against a bare Ray Tune loop whose trainable calls the same train-and-measure function.

    python -m tests.benchmarks.tune_loop --trials 200 --rounds 1

Both run in one cluster, on one core per trial, as many at once as there are cores; rounds are interleaved. The
bare loop keeps no table, no page and no plan: what a sweep takes beyond it is what those cost.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from pforce.base.console import make_console
from pforce.config import Experiment, from_dict, to_dict, with_fields
from pforce.executors.support.start import start_ray
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import plan
from pforce.orchestration.sweep import Sweep
from pforce.storage import Storage
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.training.conftest import DATA, tiny


def experiment(steps: int) -> Experiment:
    """About 2 s of one core at the default number of steps, measured in this file's own output."""
    return with_fields(tiny(steps, log_every=steps // 4, checkpoint_every=steps), {"evaluation.images": 64})


def trainable(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    row = run_trial(
        from_dict(config["experiment"]), Paths(DATA, Storage.open(config["storage"])), Where(torch.device("cpu"))
    )
    assert row is not None
    tune.report(row.metrics)


def bare(experiments: list[Experiment], folder: str, reuse: bool) -> float:
    started = time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"experiment": tune.grid_search([to_dict(each) for each in experiments]), "storage": folder},
        tune_config=tune.TuneConfig(reuse_actors=reuse),
        run_config=tune.RunConfig(storage_path=f"{folder}/ray", verbose=0),
    )
    found = tuner.fit()
    assert not found.errors
    return time.perf_counter() - started


def sweep(base: Experiment, seeds: tuple[int, ...], folder: str) -> tuple[float, float]:
    """Seconds of the sweep, and of its trials alone."""
    started = time.perf_counter()
    planned = plan(Sweep("short", base, (), seeds), Options(storage=folder, cpus_per_trial=1), make_console(quiet=True))
    assert execute(planned, make_console(quiet=True), "tune") == 0
    seconds = time.perf_counter() - started
    from pforce import results

    return seconds, float(results.runs(planned.options.uri)["cost/seconds"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--reuse", action="store_true", help="the bare loop keeps its processes (not Tune's default)")
    a = parser.parse_args()
    start_ray("local")
    base, seeds = experiment(a.steps), tuple(range(a.trials))
    for number in range(a.rounds):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            theirs = bare([with_fields(base, {"seed": seed}) for seed in seeds], one, a.reuse)
            ours, each = sweep(base, seeds, str(Path(other)))
        print(
            f"round {number + 1}: {a.trials} trials of {each:.2f} s on {os.cpu_count()} cores: a bare Tune loop"
            f"{' that keeps its processes' if a.reuse else ''} "
            f"{theirs:.1f} s, the sweep {ours:.1f} s: {ours / theirs:.2f} ×",
            flush=True,
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
