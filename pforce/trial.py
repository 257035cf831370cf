"""A trial: train a model, measure it, leave its record. The same for every launcher, Ray or not.

Folder of a trial: `experiment.json`, `checkpoints/` (see `pforce.training.checkpoint`), `samples.png`, and at the end
`result.json`, which is written last and makes the folder complete.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pforce import data, seeding
from pforce.config import ConfigError, Experiment
from pforce.images import save_grid
from pforce.metrics.detectors import load_detector
from pforce.metrics.evaluate import GRID_IMAGES, Progress, evaluate
from pforce.models import build
from pforce.sources import write_experiment
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


class TrialLocked(RuntimeError):
    """Another process runs this trial."""


def check_data(experiment: Experiment, folder: Path) -> data.Manifest:
    """The data set's manifest. DataError where it is unusable, ConfigError where it does not fit the experiment."""
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
    detector = load_detector(experiment.evaluation.detector)
    if manifest.channels != 3 or manifest.resolution < detector.minimum_size:
        raise ConfigError(
            f"data.resolution = {manifest.resolution} with {manifest.channels} channels: the detector {detector.name} "
            f"takes images of 3 channels and at least {detector.minimum_size}²"
        )
    if manifest.validation.samples < 2:
        raise ConfigError(f"{folder} has {manifest.validation.samples} validation images: a distance needs 2")
    # Reads the manifest only, and refuses what the reader would: streams, shards, batch.
    data.TrainingStream(folder, experiment.data, batch=experiment.training.batch, seed=experiment.seed)
    return manifest


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the trial's folder; TrialLocked where another process has it. Released when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrialLocked(f"{folder} is in use by another process: the same cell is being run twice") from error
        yield


def choose_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
) -> dict[str, float]:
    """Train (or resume) and evaluate. Diverged, DataError, CheckpointError and TrialLocked pass through.

    Returns the metrics under their fixed names.

    Args:
        identity: the experiment's fingerprint; its checkpoints carry it.
        device_count: devices the trial occupies, for device-hours (CPU: cores).
    """
    with only_one(paths.folder):
        write_experiment(paths.folder, experiment)
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
            "data/damaged_samples": float(sum(state.stream.damaged.values()) + held_out.damaged),
        }
        if evaluation.samples.shape[1] == 3:
            save_grid(
                evaluation.samples[:GRID_IMAGES], paths.folder / SAMPLES, scale=max(1, 64 // held_out.images.shape[-1])
            )
        record = paths.folder / f".{RESULT}"
        record.write_text(json.dumps({"fingerprint": identity, "metrics": metrics}, indent=1))
        record.rename(paths.folder / RESULT)
        return metrics
