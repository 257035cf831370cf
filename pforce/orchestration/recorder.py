"""What trials report goes into MLflow and onto the display. Runs in the driver, for every launcher."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pforce.metrics.distances import metric_name
from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.plan import Plan, trial_folder
from pforce.orchestration.sweep import Work, flat_params
from pforce.tracking import RunSpec, SweepRun, Tags
from pforce.trial import MAPS, RESULT, SAMPLES, evaluation_folder

TRAINING_SHARE = 0.8
"""Of a trial's progress bar; the rest is evaluation."""


class Recorder:
    """Keeps the runs of the trials under way and closes each as FINISHED, FAILED or KILLED."""

    def __init__(self, plan: Plan, sweep_run: SweepRun, display: SweepDisplay, tags: dict[str, str]) -> None:
        self.plan, self.sweep_run, self.display, self.tags = plan, sweep_run, display, tags
        self.open: dict[str, str] = {}
        """fingerprint → run id of the trials under way."""
        self.started = time.monotonic()
        self.evaluation_devices = 1
        """Devices of a worker that evaluates apart."""
        self.failed: dict[str, str] = {}
        """fingerprint → reason."""
        self.trained: dict[str, dict[str, Any]] = {}
        """fingerprint → the report of a training whose evaluation is still to come."""

    def start(self, item: Work) -> None:
        """A trial starts: its run is made, or an unfinished one is taken up again."""
        if item.fingerprint in self.open:
            return
        inputs = {f"input.{name}": value for name, value in self.plan.inputs.items()}
        tags = {**self.tags, **inputs, "weights": "ema", Tags.SEED: str(item.experiment.seed)}
        tags[Tags.TRAINING] = item.training
        spec = RunSpec(item.label, item.fingerprint, flat_params(item.experiment), tags)
        self.open[item.fingerprint] = self.plan.tracker.open_trial(self.sweep_run, spec)
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
            case "failed":
                self.fail(item, result["reason"], result["error"])
            case "warning":
                self.display.line(f"{item.label}: warning: {result['message']}")
                self.plan.tracker.tag(self.open[item.fingerprint], {Tags.WARNING: result["message"]})
            case part:
                self.display.update(item.label, TRAINING_SHARE + (1 - TRAINING_SHARE) * result["share"], part)

    def fail(self, item: Work, reason: str, error: str) -> None:
        """A trial failed: FAILED with its reason; the next call of the sweep tries it again."""
        run_id = self.open.pop(item.fingerprint)
        self.plan.tracker.tag(run_id, {Tags.REASON: reason, Tags.ERROR: error})
        self.plan.tracker.close(run_id, "FAILED")
        self.failed[item.fingerprint] = reason
        self.display.end(item.label, f"FAILED ({reason}): {error}")

    def kill(self, fingerprint: str, reason: str) -> None:
        """A trial was stopped from outside: KILLED; the same command takes it up at its last checkpoint."""
        run_id = self.open.pop(fingerprint)
        self.plan.tracker.tag(run_id, {Tags.REASON: reason})
        self.plan.tracker.close(run_id, "KILLED")

    def kill_all(self, reason: str) -> None:
        """`kill` for every trial under way."""
        for fingerprint in list(self.open):
            self.kill(fingerprint, reason)

    def _training(self, item: Work, record: dict[str, float]) -> None:
        images = int(record["images_seen"])
        names = ("loss", "mse", "nll", "gradient_norm", "learning_rate")
        metrics = {f"train/{name}": record[name] for name in names}
        metrics["throughput/images_per_second"] = record["images_per_second"]
        self.plan.tracker.log(self.open[item.fingerprint], metrics, step=images)
        note = f"loss {record['loss']:.4f} · {record['images_per_second']:.0f} images/s"
        self.display.update(item.label, TRAINING_SHARE * images / item.experiment.training.images, note)

    def _done(self, item: Work, result: dict[str, Any]) -> None:
        tracker, run_id = self.plan.tracker, self.open[item.fingerprint]
        tracker.log(run_id, result["metrics"], step=item.experiment.training.images)
        tracker.tag(run_id, {key: str(value) for key, value in result["environment"].items()})
        folder = evaluation_folder(trial_folder(self.plan.options, item), item.fingerprint)
        for path in (folder / SAMPLES, _uncertainty_picture(folder), folder / RESULT):
            if path is not None and path.exists():
                tracker.artifact(run_id, path)
        # FINISHED is the ledger's word for done: it comes after the record, never before.
        tracker.close(run_id, "FINISHED")
        del self.open[item.fingerprint]
        name = metric_name("fd", item.experiment.evaluation.detector_name)
        distance = result["metrics"].get(name, math.nan)
        self.display.end(item.label, f"validation loss {result['metrics']['val/loss']:.4f} · distance {distance:.2f}")


def _uncertainty_picture(folder: Path) -> Path | None:
    """Maps of predicted uncertainty on held-out images, drawn here: a trial's process loads no plotting library."""
    if not (folder / MAPS).exists():
        return None
    from pforce.results.difficulty_figures import uncertainty_maps

    with np.load(folder / MAPS) as arrays:
        images, timesteps, sigma = arrays["images"], arrays["timesteps"], arrays["sigma"]
    if images.shape[1] != 3:
        return None
    path = (folder / MAPS).with_suffix(".png")
    by_time = {float(t): maps for t, maps in zip(timesteps, sigma, strict=True)}
    uncertainty_maps(torch.from_numpy(images), by_time, path)
    return path
