"""What trials report goes into MLflow and onto the display. Runs in the driver, for every launcher."""

from __future__ import annotations

import math
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pforce.config import flat_params
from pforce.metrics.distances import metric_name
from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.failures import DISK_FULL
from pforce.orchestration.plan import Plan, trial_folder
from pforce.orchestration.sweep import Work
from pforce.records.parts import decay_of
from pforce.storage import StorageError
from pforce.tracking import Delivery, RunSpec, Status, Tags
from pforce.trial.folder import MAPS, SAMPLES, evaluation_folder

FIGURES = "pforce.results.difficulty_figures"
TRAINING_SHARE = 0.8
"""Share of a trial's progress bar that is training; the rest is evaluation."""


class DiskFull(RuntimeError):
    """A trial could not write its files for want of space."""


class Recorder:
    """Keeps the runs of the trials under way and closes each as FINISHED, FAILED or KILLED."""

    def __init__(
        self,
        plan: Plan,
        delivery: Delivery,
        display: SweepDisplay,
        tags: dict[str, str],
        sweep_tags: dict[str, str],
    ) -> None:
        self.plan, self.delivery, self.display, self.tags = plan, delivery, display, tags
        self.sweep_tags = sweep_tags
        """Tags of the sweep's own run; `tags` are those of each trial."""
        self.begun = False
        self.open: dict[str, Work] = {}
        """fingerprint → the trials under way."""
        self.finished: set[str] = set()
        """Fingerprints of the trials that ended well."""
        self.retried: dict[str, list[str]] = {}
        """fingerprint → reasons for which it was begun again."""
        self.reached = dict(plan.recorded)
        """fingerprint → images seen at the last point of its curve."""
        self.started = time.monotonic()
        self.evaluation_devices = 1
        """Devices of a worker that evaluates apart."""
        self.disk_full: str | None = None
        """What a trial could not write."""
        self.failed: dict[str, str] = {}
        """fingerprint → reason."""
        self.trained: dict[str, dict[str, Any]] = {}
        """fingerprint → the report of a training whose evaluation is still to come."""

    def begin(self) -> None:
        """The sweep's own run is made, or taken up again: a launcher says so once it knows that there is room for the
        trials. TrackingError where the store does not take it."""
        self.delivery.open_sweep(self.plan.sweep.name, self.sweep_tags)
        self.begun = True
        # The driver has nothing to do until the first trial's process is up: time to import what its end will need.
        threading.Thread(target=import_module, args=(FIGURES,), daemon=True).start()

    def close(self, status: Status) -> None:
        """The sweep has ended."""
        if self.begun:
            self.delivery.close_sweep(status)

    def start(self, item: Work) -> None:
        """A trial starts: its run is made, or an unfinished one is taken up again."""
        if item.fingerprint in self.open:
            return
        inputs = {f"input.{name}": value for name, value in self.plan.inputs.tags().items()}
        tags = {**self.tags, **inputs, "weights": "ema", Tags.SEED: str(item.experiment.seed)}
        tags[Tags.TRAINING] = item.training
        if (branch := decay_of(item.parts.training)) is not None:
            tags[Tags.TRUNK] = branch[0]
        spec = RunSpec(item.label, item.fingerprint, flat_params(item.experiment), tags)
        self.open[item.fingerprint] = item
        self.delivery.open_trial(spec)
        self.display.update(item.label, 0.0, "starting")

    def report(self, item: Work, result: dict[str, Any]) -> None:
        """One report of a trial (see `pforce.orchestration.worker.run_cell`)."""
        match result["phase"]:
            case "training":
                self._training(item, result["record"])
            case "done":
                self._done(item, result)
            case "trained":
                self.trained[item.fingerprint] = result
                self.display.update(item.label, TRAINING_SHARE, "trained")
            case "failed" if result["reason"] == DISK_FULL:
                # Every other trial would meet the same: the sweep stops, and this trial can go on when there is room.
                self.disk_full = f"{item.label}: {result['error']}"
                raise DiskFull(self.disk_full)
            case "failed":
                self.fail(item, result["reason"], result["error"])
            case "warning":
                self.display.line(f"{item.label}: warning: {result['message']}")
                self.delivery.tag(item.fingerprint, {Tags.WARNING: result["message"]})
            case part:
                self.display.update(item.label, TRAINING_SHARE + (1 - TRAINING_SHARE) * result["share"], part)

    def retry(self, item: Work, reason: str, error: str, attempt: int, attempts: int) -> None:
        """A trial failed and is begun again: attempt number `attempt`, from 1, of at most `attempts`."""
        reasons = self.retried.setdefault(item.fingerprint, [])
        reasons.append(reason)
        self.display.line(f"{item.label}: {reason}; attempt {attempt} of {attempts} goes on at its last checkpoint")
        tags = {Tags.ATTEMPTS: str(attempt), Tags.RETRIED: "; ".join(reasons)}
        self.delivery.tag(item.fingerprint, tags)

    def fail(self, item: Work, reason: str, error: str) -> None:
        """A trial failed: FAILED with its reason; the next call of the sweep tries it again."""
        self.open.pop(item.fingerprint)
        self.delivery.tag(item.fingerprint, {Tags.REASON: reason, Tags.ERROR: error})
        self.delivery.close(item.fingerprint, "FAILED")
        self.failed[item.fingerprint] = reason
        self.display.end(item.label, f"FAILED ({reason}): {error}")

    def kill(self, fingerprint: str, reason: str) -> None:
        """A trial was stopped from outside: KILLED; the same command takes it up at its last checkpoint."""
        self.open.pop(fingerprint)
        self.delivery.tag(fingerprint, {Tags.REASON: reason})
        self.delivery.close(fingerprint, "KILLED")

    def kill_all(self, reason: str) -> None:
        """`kill` for every trial under way."""
        for fingerprint in list(self.open):
            self.kill(fingerprint, reason)

    def _training(self, item: Work, record: dict[str, float]) -> None:
        images = int(record["images_seen"])
        names = ("loss", "mse", "nll", "gradient_norm", "learning_rate")
        metrics = {f"train/{name}": record[name] for name in names}
        metrics["train/images_seen"] = float(images)
        metrics["throughput/images_per_second"] = record["images_per_second"]
        if "device_hours" in record:
            metrics["cost/device_hours"] = record["device_hours"]
        if images > self.reached.get(item.fingerprint, 0):
            # A trial that was begun again repeats the points after its checkpoint; they are in its curve already.
            self.reached[item.fingerprint] = images
            self.delivery.log(item.fingerprint, metrics, step=images)
        note = f"loss {record['loss']:.4f} · {record['images_per_second']:.0f} images/s"
        self.display.update(item.label, TRAINING_SHARE * images / item.experiment.training.images, note)

    def _done(self, item: Work, result: dict[str, Any]) -> None:
        delivery, fingerprint = self.delivery, item.fingerprint
        # What is undefined or infinite has no place in a store that would make a large number of it.
        finite = {name: value for name, value in result["metrics"].items() if math.isfinite(value)}
        delivery.log(fingerprint, finite, step=item.experiment.training.images)
        delivery.tag(fingerprint, {key: str(value) for key, value in result["environment"].items()})
        folder = evaluation_folder(trial_folder(self.plan.options, item), item.fingerprint)
        try:
            if not (folder / SAMPLES).exists():  # in a bucket, as the worker was on another machine
                self.plan.options.place.pull(folder.relative_to(self.plan.options.root).as_posix())
        except StorageError as error:  # the result is there, and counts: its pictures only are not here
            self.report(item, {"phase": "warning", "message": f"pictures are not in the tracking store: {error}"})
        for path in (folder / SAMPLES, _uncertainty_picture(folder)):
            if path is not None and path.exists():
                delivery.artifact(fingerprint, path)
        delivery.close(fingerprint, "FINISHED")
        del self.open[fingerprint]
        self.finished.add(fingerprint)
        name = metric_name("fd", item.experiment.evaluation.detector_name)
        distance = result["metrics"].get(name, math.nan)
        self.display.end(item.label, f"validation loss {result['metrics']['val/loss']:.4f} · distance {distance:.2f}")


def _uncertainty_picture(folder: Path) -> Path | None:
    """Maps of predicted uncertainty on held-out images, drawn here: a trial's process loads no plotting library."""
    if not (folder / MAPS).exists():
        return None
    figures = import_module(FIGURES)
    with np.load(folder / MAPS) as arrays:
        images, timesteps, sigma = arrays["images"], arrays["timesteps"], arrays["sigma"]
    if images.shape[1] != 3:
        return None
    path = (folder / MAPS).with_suffix(".png")
    by_time = {float(t): maps for t, maps in zip(timesteps, sigma, strict=True)}
    figures.uncertainty_maps(torch.from_numpy(images), by_time, path)
    return path
