"""A trial: train a model, measure it, leave its record. The same for every launcher, Ray or not.

Folder of a trial: `checkpoints/` (see `pforce.training.checkpoint`), `samples.png`, and at the end
`result.json`, which is written last and makes the folder complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pforce import data, seeding
from pforce.config import ConfigError, Experiment
from pforce.images import save_grid
from pforce.metrics.evaluate import GRID_IMAGES, evaluate
from pforce.models import build
from pforce.training import Callback, Checkpoints, TrainingSpec, TrainState, new_state, train

RESULT = "result.json"
SAMPLES = "samples.png"


@dataclass(frozen=True)
class Paths:
    """Where a trial finds its data and leaves its files."""

    data: Path
    """Folder of the data set."""
    folder: Path
    """Folder of this trial, named by its fingerprint."""


class TrialResult(NamedTuple):
    """What a finished trial is known by."""

    metrics: dict[str, float]
    folder: Path


Progress = Callable[[str, float], None]


def choose_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_data(experiment: Experiment, folder: Path) -> data.Manifest:
    """The data set's manifest. DataError where it is unreadable, ConfigError where it does not fit the experiment."""
    manifest = data.Manifest.load(folder)
    manifest.check(folder)
    expected = {
        "model.classes": (experiment.model.classes, len(manifest.classes)),
        "model.channels": (experiment.model.channels, manifest.channels),
        "data.resolution": (experiment.data.resolution, manifest.resolution),
    }
    for path, (configured, found) in expected.items():
        if configured != found:
            raise ConfigError(f"{path} = {configured}: must be {found}, as the data set in {folder} has")
    return manifest


def training_state(experiment: Experiment, paths: Paths, identity: str, device: torch.device) -> TrainState:
    """A training at step 0: seeded weights, the data stream at its start."""
    spec = TrainingSpec(
        timesteps=experiment.timesteps,
        flow=experiment.flow,
        optimizer=experiment.optimizer,
        training=experiment.training,
        seed=experiment.seed,
        identity=identity,
    )
    model = build(experiment.model, generator=seeding.generator("weights", experiment.seed))
    stream = data.TrainingStream(paths.data, experiment.data, batch=experiment.training.batch, seed=experiment.seed)
    return new_state(spec, model, stream, device)


def run_trial(
    experiment: Experiment,
    paths: Paths,
    *,
    identity: str,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    progress: Progress = lambda part, share: None,
    device_count: float = 1,
) -> TrialResult:
    """Train (or resume) and evaluate. Diverged, DataError and CheckpointError pass through.

    Args:
        identity: the experiment's fingerprint; its checkpoints carry it.
        device_count: devices the trial occupies, for device-hours (CPU: cores).
    """
    # What the evaluation reads is read first: a missing file is found before hours of training, not after.
    wanted = min(experiment.evaluation.validation_images, data.Manifest.load(paths.data).validation.samples)
    held_out = data.read_split(paths.data, "validation", limit=wanted)
    state = training_state(experiment, paths, identity, device)
    checkpoints = Checkpoints(paths.folder / "checkpoints")
    train(state, flip=experiment.data.flip, callbacks=(checkpoints, *callbacks))
    started = time.perf_counter()
    evaluation = evaluate(
        state.ema.model,
        experiment.evaluation,
        experiment.sampler,
        held_out.images,
        held_out.labels,
        device=device,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    metrics = {
        **evaluation.metrics,
        "cost/images_seen": float(state.images_seen),
        "cost/training_seconds": state.seconds,
        "cost/evaluation_seconds": seconds,
        "cost/seconds": state.seconds + seconds,
        "cost/device_hours": (state.seconds + seconds) * device_count / 3600,
        "throughput/images_per_second": state.images_seen / state.seconds,
    }
    if evaluation.samples.shape[1] == 3:
        save_grid(
            evaluation.samples[:GRID_IMAGES], paths.folder / SAMPLES, scale=max(1, 64 // held_out.images.shape[-1])
        )
    record = paths.folder / f".{RESULT}"
    record.write_text(json.dumps({"fingerprint": identity, "metrics": metrics}, indent=1))
    record.rename(paths.folder / RESULT)
    return TrialResult(metrics, paths.folder)
