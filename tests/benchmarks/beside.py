"""What measuring beside a training costs the training: its steps while another process measures a snapshot, and while
that process waits, in turn. One thread each, so that a second core is free for the measurement.

    python -m tests.benchmarks.beside [--rounds 20] [--steps 20]
"""

from __future__ import annotations

import argparse
import multiprocessing
from multiprocessing.synchronize import Event

import numpy as np
import torch

from pforce import catalog, data
from pforce.config import with_fields
from pforce.executors.processes import STARTS
from pforce.models import build
from pforce.sampling import generate
from pforce.training import train
from pforce.trial.train import training_state
from tests.benchmarks.timing import interleaved, spread

CPU = torch.device("cpu")
BATCH = 64


def measure(wanted: Event, over: Event) -> None:
    """Draw images of a model and read their features, as long as that is wanted."""
    torch.set_num_threads(1)
    made = catalog.experiment("openmoji32_micro")
    model, detector = build(made.model).eval(), made.evaluation.load_detector()
    labels = torch.arange(BATCH) % made.model.classes
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive() and not over.is_set():
        if not wanted.wait(0.2):
            continue
        with torch.inference_mode():
            for drawn in generate(model, made.sampler, labels, seed=0, batch=8, device=CPU):
                detector(drawn.images.clamp(-1, 1).add(1).mul(127.5).to(torch.uint8))
                if not (wanted.is_set() and parent.is_alive()):
                    break


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = with_fields(
        catalog.experiment("openmoji32_micro"), {"training.images": BATCH * 10**6, "training.batch": BATCH}
    )
    state = training_state(made, data.ensure(made.data), "id", CPU)
    wanted, over = STARTS.Event(), STARTS.Event()
    other = STARTS.Process(target=measure, args=(wanted, over), daemon=True)
    other.start()

    def turn(beside: bool) -> None:
        if beside:
            wanted.set()
        else:
            wanted.clear()
        train(state, until=state.images_seen + given.steps * BATCH)

    seconds = interleaved({"alone": lambda: turn(False), "beside": lambda: turn(True)}, given.rounds)
    over.set()
    other.join(30)
    ratios = seconds["beside"] / seconds["alone"]
    low, high = np.quantile(np.random.default_rng(0).choice(ratios, (2000, len(ratios))).mean(axis=1), [0.025, 0.975])
    alone = spread(seconds["alone"], 1)
    print(f"{given.steps} steps of {BATCH} images alone: {alone} s; {multiprocessing.cpu_count()} cores")
    print(f"beside / alone: median {np.median(ratios):.4f}, mean {ratios.mean():.4f} ({low:.4f} … {high:.4f}), n = "
          f"{len(ratios)}")  # fmt: skip


if __name__ == "__main__":
    main()
