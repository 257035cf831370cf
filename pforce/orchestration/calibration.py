"""Estimate of a sweep's time, from a few real steps."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from pforce import flow, sampling
from pforce.config import Experiment
from pforce.executors.support.placement import Placement, place, this_machine
from pforce.models import build
from pforce.training import train
from pforce.trial.train import training_state
from pforce.trial.where import choose_device

WARMUP_STEPS, TIMED_STEPS = 1, 4
TIMED_EVALUATIONS = 3
FIXED_SECONDS = 2.0
"""Seconds per trial outside training and evaluation, as tests/benchmarks/fixed_cost.py measures them in a sweep."""


class Estimate(NamedTuple):
    """Estimated time of a sweep on this machine."""

    training_seconds: float
    """Seconds to train one trial."""
    evaluation_seconds: float
    """Seconds to measure one trial."""
    placement: Placement
    seconds: float
    """Seconds of all missing trials, with this machine's cores and GPUs."""


def estimate(
    experiment: Experiment,
    data: Path,
    trials: int,
    *,
    cpus: int | None,
    gpus: float | None,
    workers: int = 1,
    whole_nodes: bool = False,
    alone: bool = False,
) -> Estimate:
    """Estimate a sweep's time from a few training steps and model evaluations in this process, on a trial's share of
    the cores.

    The steps are real ones on the real data. Simultaneous trials share memory bandwidth, which an estimate from a
    single one does not include.

    Args:
        alone: one trial after the other, on all cores.
    """
    placement = place(
        1 if alone else trials,
        nodes=[this_machine()],
        cpus=cpus,
        gpus=gpus,
        workers=workers,
        whole_nodes=whole_nodes,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(placement.cpus)
    try:
        # Workers share the work evenly; an estimate in one process does not include their communication.
        training = _training_seconds(experiment, data) * experiment.training.steps / workers
        evaluation = _evaluation_seconds(experiment) / workers
    finally:
        torch.set_num_threads(threads)
    rounds = -(-trials // placement.concurrent)
    return Estimate(training, evaluation, placement, rounds * (training + evaluation + FIXED_SECONDS))


def _training_seconds(experiment: Experiment, data: Path) -> float:
    """Seconds per optimiser step."""
    config = experiment.training

    def budget(steps: int) -> Experiment:
        return replace(experiment, training=replace(config, images=steps * config.batch, log_every=1))

    state = training_state(budget(WARMUP_STEPS + TIMED_STEPS), data, "calibration", choose_device())
    state.spec = replace(state.spec, training=budget(WARMUP_STEPS).training)
    train(state)
    state.spec = replace(state.spec, training=budget(WARMUP_STEPS + TIMED_STEPS).training)
    started = time.perf_counter()
    train(state)
    return (time.perf_counter() - started) / TIMED_STEPS


@torch.no_grad()
def _evaluation_seconds(experiment: Experiment) -> float:
    """Seconds of a trial's evaluation: its forward passes times the seconds per pass."""
    device, evaluation = choose_device(), experiment.evaluation
    model = build(experiment.model).to(device).eval()
    batch = min(evaluation.batch, 16)
    x = torch.randn(batch, experiment.model.channels, *experiment.model.image_size, device=device)
    y = torch.zeros(batch, dtype=torch.int64, device=device)
    schedule = sampling.timesteps_for("euler", TIMED_EVALUATIONS)  # a pass costs the same in every sampler
    sampling.euler(model, x, schedule.timesteps[:2], y=y).sum().item()  # .item() waits for the device
    started = time.perf_counter()
    sampling.euler(model, x, schedule.timesteps, y=y, guidance=experiment.sampler.guidance).sum().item()
    per_image = (time.perf_counter() - started) / TIMED_EVALUATIONS / batch
    measured = flow.VALIDATION_SEGMENTS + len(evaluation.difficulty_timesteps)
    passes = evaluation.images * experiment.sampler.num_function_evaluations + evaluation.held_out_images * measured
    return per_image * passes
