"""A trial: train a model, measure it, leave its record. The same for every launcher, Ray or not.

Folder of a training, named by its training fingerprint: `experiment.json`, `checkpoints/` (see
`pforce.training.checkpoint`), and `evaluations/<fingerprint>/` with the pictures of an evaluation and, written last,
its `result.json`. Trials that differ in sampler or evaluation only share the training.
"""

from __future__ import annotations

import fcntl
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pforce import data, seeding
from pforce.config import Experiment
from pforce.files import write_whole
from pforce.images import save_grid
from pforce.metrics.detectors import Detector
from pforce.metrics.evaluate import GRID_IMAGES, Progress, TrialEvaluation, evaluate
from pforce.mirror import TrialMirror
from pforce.models import PatchForcingTransformer, build
from pforce.parallel import ALONE, Workers
from pforce.references import reference_for
from pforce.sources import EVALUATIONS, write_experiment
from pforce.training import Callback, Checkpoints, Sharding, TrainingSpec, TrainState, new_state, train, whole
from pforce.validation import ConfigError

RESULT = "result.json"
SAMPLES = "samples.png"
MAPS = "uncertainty_maps.npz"
"""What `pforce.metrics.evaluate.UncertaintyMaps` holds."""
LOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Paths:
    """Where a trial finds its data and leaves its files."""

    data: Path
    """Folder of the data set."""
    folder: Path
    """Folder of the training, named by its fingerprint."""
    references: Path | None = None
    """Where features of reference images are kept; None makes them anew."""
    mirror: TrialMirror | None = None
    """Of the folder in a bucket; None where the folder is the storage itself."""


def evaluation_folder(folder: Path, identity: str) -> Path:
    """Folder of one evaluation of a training."""
    return folder / EVALUATIONS / identity


class TrialLocked(RuntimeError):
    """Another process runs this trial."""


def check_data(experiment: Experiment, folder: Path, detector: Detector) -> data.Manifest:
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
def only_one(folder: Path, *, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder until the block or the process ends.

    Args:
        wait: called about once a second while another process has it; without it that is TrialLocked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if wait is None:
                    message = f"{folder} is in use by another process: the same cell is being run twice"
                    raise TrialLocked(message) from error
                wait()
                time.sleep(LOCK_SECONDS)
        yield


@contextmanager
def _held(workers: Workers, folder: Path, *, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """`only_one` by the first of several workers; the others wait for it, or raise what it raised."""
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(only_one(folder, wait=wait))

        workers.first_does(hold)
        yield


def choose_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_state(
    experiment: Experiment,
    paths: Paths,
    identity: str,
    device: torch.device,
    *,
    workers: Workers = ALONE,
    sharding: Sharding = "none",
    devices: float = 1.0,
) -> TrainState:
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
    stream = data.TrainingStream(
        paths.data,
        experiment.data,
        batch=experiment.training.batch,
        seed=experiment.seed,
        rank=workers.rank,
        world_size=workers.count,
    )
    return new_state(spec, model, stream, device, workers=workers, sharding=sharding, devices=devices)


def averaged_model(state: TrainState, experiment: Experiment) -> PatchForcingTransformer:
    """The averaged weights as a whole model on every worker. To be called by all of them."""
    if state.workers.count == 1:
        return state.ema.model
    weights = {name: whole(tensor) for name, tensor in state.ema.model.state_dict().items()}
    model = build(experiment.model).to(state.device).eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model


def train_trial(
    experiment: Experiment,
    paths: Paths,
    *,
    training: str,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    progress: Progress = lambda part, share: None,
    device_count: float = 1,
    workers: Workers = ALONE,
    sharding: Sharding = "none",
) -> tuple[TrainState, dict[str, float]]:
    """Train, resume, or find trained. Diverged, DataError and CheckpointError pass.

    Returns the state and what the training cost. Waits while another process trains the same.

    Args:
        training: fingerprint of the training; its checkpoints carry it.
        callbacks, progress: called by the first worker only.
        device_count: devices the trial occupies, over all workers, for device-hours (CPU: cores).
        workers: those that share the training; called by all of them.
        sharding: how; see `pforce.training.strategy`.
    """
    with _held(workers, paths.folder, wait=lambda: progress("waiting for its training", 0.0)):
        if workers.first:
            write_experiment(paths.folder, experiment)
        state = training_state(
            experiment, paths, training, device, workers=workers, sharding=sharding, devices=device_count
        )
        checkpoints = Checkpoints(paths.folder / "checkpoints", paths.mirror)
        own = callbacks if workers.first else ()
        train(state, flip=experiment.data.flip, callbacks=(checkpoints, *own))
        if paths.mirror is not None and workers.first:
            paths.mirror.finish()
    damaged: dict[str, int] = {}
    for found in workers.gather(state.stream.damaged):
        damaged |= found
    return state, {
        "cost/images_seen": float(state.images_seen),
        "cost/training_seconds": state.seconds,
        "cost/device_hours": state.device_seconds / 3600,
        "throughput/images_per_second": state.images_seen / state.seconds,
        "data/damaged_samples": float(sum(damaged.values())),
    }


def run_trial(
    experiment: Experiment,
    paths: Paths,
    *,
    identity: str,
    training: str,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    progress: Progress = lambda part, share: None,
    device_count: float = 1,
    workers: Workers = ALONE,
    sharding: Sharding = "none",
) -> dict[str, float]:
    """Train and evaluate. TrialLocked where another process evaluates the same; other errors as `train_trial`.

    Returns the metrics under their fixed names, on the first worker; the others get none. What the evaluation notes
    is warned of.

    Args:
        identity: the experiment's fingerprint: of the evaluation.
        training, callbacks, device_count, workers, sharding: as of `train_trial`. The workers share the images of the
            evaluation too.
    """
    results = evaluation_folder(paths.folder, identity)
    with _held(workers, results):
        if workers.first:
            write_experiment(results, experiment)
        # What the evaluation reads is read first: a missing file is found before hours of training, not after.
        wanted = min(experiment.evaluation.validation_images, data.Manifest.load(paths.data).validation.samples)
        held_out = data.read_split(paths.data, "validation", limit=wanted)
        detector = experiment.evaluation.load_detector().to(device)
        state, cost = train_trial(
            experiment,
            paths,
            training=training,
            device=device,
            callbacks=callbacks,
            progress=progress,
            device_count=device_count,
            workers=workers,
            sharding=sharding,
        )
        started = time.perf_counter()
        reference = None
        if workers.first:
            reference = reference_for(
                experiment.evaluation, paths.data, detector, held_out=held_out, cache=paths.references, device=device
            )
        evaluation = evaluate(
            averaged_model(state, experiment),
            experiment.evaluation,
            experiment.sampler,
            held_out.images,
            held_out.labels,
            device=device,
            detector=detector,
            reference=reference,
            progress=progress,
            workers=workers,
        )
        if evaluation is None:
            return {}
        seconds = time.perf_counter() - started
        for note in evaluation.notes:
            warnings.warn(note, stacklevel=2)
        metrics = {
            **evaluation.metrics,
            **cost,
            "cost/evaluation_seconds": seconds,
            "cost/seconds": state.seconds + seconds,
            "cost/device_hours": cost["cost/device_hours"] + seconds * device_count / 3600,
            "data/damaged_samples": cost["data/damaged_samples"] + held_out.damaged,
        }
        leave_evaluation(results, evaluation, identity, metrics)
        if paths.mirror is not None:
            paths.mirror.finish(f"{EVALUATIONS}/{identity}", last=RESULT)
        return metrics


def leave_evaluation(folder: Path, evaluation: TrialEvaluation, identity: str, metrics: dict[str, float]) -> None:
    """The files of an evaluation, the result last."""
    if evaluation.samples.shape[1] == 3:
        scale = max(1, 64 // evaluation.samples.shape[-1])
        save_grid(evaluation.samples[:GRID_IMAGES], folder / SAMPLES, scale=scale)
    if evaluation.maps is not None:
        maps = evaluation.maps._asdict()
        write_whole(folder / MAPS, lambda scratch: _save(scratch, maps))
    text = json.dumps({"fingerprint": identity, "metrics": metrics}, indent=1)
    write_whole(folder / RESULT, lambda scratch: _write(scratch, text))


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
