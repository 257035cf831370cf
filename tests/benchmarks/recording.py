"""What recording costs a training: two trainings of one model take turns, 50 steps at a time, one with its points in
MLflow by the page of a running sweep, one without.

Both run in this process, the page's thread on the same core, which is the worst case: on a cluster, the page is the
driver's. The CPU time of the page's thread, which a noisy machine does not spoil, is an upper bound.

    python -m tests.benchmarks.recording [--rounds 20] [--steps 50] [--batch 64]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pforce import catalog, data
from pforce.config import with_fields
from pforce.results.shown import point_of
from pforce.storage import Storage
from pforce.tracking import Live, Mirror, Tracker, default_uri
from pforce.training import Callback, OnRecord, TrainState, train
from pforce.trial.train import training_state
from tests.benchmarks.timing import interleaved, spread

CPU = torch.device("cpu")
CELL = "0" * 32


def trained(batch: int, steps: int) -> TrainState:
    """A training of the main job's model at its start."""
    made = with_fields(
        catalog.experiment("openmoji32_micro"), {"training.batch": batch, "training.images": batch * 10**6}
    )
    made = replace(made, training=replace(made.training, log_every=steps))
    return training_state(made, data.ensure(made.data), "id", CPU)


def turn(state: TrainState, steps: int, *callbacks: Callback) -> None:
    """Train so many further steps."""
    train(state, until=state.images_seen + steps * state.spec.training.batch, callbacks=callbacks)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mirror = Mirror(Tracker(default_uri(folder), artifacts=folder / "artifacts"), Storage.open(folder))
        with Live(mirror, "recording", "identity", print) as page:
            page.open({})
            page.start(CELL, "cell", {}, {})
            shown = OnRecord(lambda record: page.log(CELL, point_of(record)))
            plain, recorded = (trained(given.batch, given.steps) for _ in range(2))
            whole, own = time.process_time(), time.thread_time()
            seconds = interleaved({
                "plain": lambda: turn(plain, given.steps),
                "recorded": lambda: turn(recorded, given.steps, shown),
            }, given.rounds)  # fmt: skip
            whole, own = time.process_time() - whole, time.thread_time() - own
            page.close(CELL, "FINISHED")
            page.end("FINISHED")
            page.finish()
    ratios = seconds["recorded"] / seconds["plain"]
    print(f"{given.steps} steps of {given.batch} images: {spread(seconds['plain'], 1)} s")
    low, high = np.quantile(np.random.default_rng(0).choice(ratios, (2000, len(ratios))).mean(axis=1), [0.025, 0.975])
    print(f"recorded / plain: median {np.median(ratios):.4f}, mean {ratios.mean():.4f} ({low:.4f} … {high:.4f}), n = "
          f"{len(ratios)}")  # fmt: skip
    print(f"CPU time of all other threads, of the process's: {1 - own / whole:.2%}")


if __name__ == "__main__":
    main()
