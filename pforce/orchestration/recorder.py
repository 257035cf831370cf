"""What trials report goes onto the sweep's page and onto the display. Runs in the driver, for every launcher."""

from __future__ import annotations

import math
import threading
import time
from importlib import import_module
from typing import Any

from pforce.config import flat_params
from pforce.metrics.distances import metric_name
from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.plan import Plan, entry_of
from pforce.orchestration.sweep import Work
from pforce.records.parts import decay_of
from pforce.results.shown import curve_points, point_of, recorded_view
from pforce.tracking import Live, Status, Tags
from pforce.training import Record
from pforce.trial.failures import DISK_FULL

FIGURES = "pforce.results.difficulty_figures"
WAITING = "waiting for "
"""How a trial begins to say whom it waits for."""
STARTING = "starting"
"""What a trial says once it is at work itself."""
TRAINING_SHARE = 0.8
"""Share of a trial's progress bar that is training; the rest is evaluation."""


class DiskFull(RuntimeError):
    """A trial could not write its files for want of space."""


class Recorder:
    """Keeps the runs of the trials under way and closes each as FINISHED, FAILED or KILLED."""

    def __init__(
        self,
        plan: Plan,
        live: Live,
        display: SweepDisplay,
        tags: dict[str, str],
        sweep_tags: dict[str, str],
    ) -> None:
        self.plan, self.live, self.display, self.tags = plan, live, display, tags
        self.sweep_tags = sweep_tags
        """Tags of the sweep's own run; `tags` are those of each trial."""
        self.begun = False
        self.open: dict[str, Work] = {}
        """fingerprint → the trials under way."""
        self.finished: set[str] = set()
        """Fingerprints of the trials that ended well."""
        self.retried: dict[str, list[str]] = {}
        """fingerprint → reasons for which it was begun again."""
        self.shown: set[str] = set()
        """Fingerprints of the trials whose runs this driver has begun."""
        self.pending: dict[str, dict[str, str]] = {}
        """fingerprint → tags that its run gets when it is begun."""
        self.waiting: set[str] = set()
        """Fingerprints of the trials that wait for another process. The run of one that has not begun is another's."""
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
        self.live.open(self.sweep_tags)
        self.begun = True
        # The driver has nothing to do until the first trial's process is up: time to import what its end will need.
        threading.Thread(target=import_module, args=(FIGURES,), daemon=True).start()

    def close(self, status: Status) -> None:
        """The sweep has ended."""
        if self.begun:
            self.live.end(status)

    def start(self, item: Work) -> None:
        """A trial starts. Its run is made, or an unfinished one taken up again, once it says that it is at work: until
        then another driver may be."""
        if item.fingerprint not in self.open:
            self.open[item.fingerprint] = item
            self.display.update(item.label, 0.0, STARTING)

    def _works(self, item: Work) -> None:
        """A trial is at work itself."""
        fingerprint = item.fingerprint
        if fingerprint in self.shown:
            if fingerprint in self.waiting:
                self.waiting.discard(fingerprint)
                self.live.again(fingerprint)
            return
        self.waiting.discard(fingerprint)
        self.shown.add(fingerprint)
        inputs = {f"input.{name}": value for name, value in self.plan.inputs.tags().items()}
        tags = {**self.tags, **inputs, "weights": "ema", Tags.SEED: str(item.experiment.seed)}
        tags[Tags.TRAINING] = item.training
        if (branch := decay_of(item.parts.training)) is not None:
            tags[Tags.TRUNK] = branch[0]
        params = {name: str(value) for name, value in flat_params(item.experiment).items()}
        place, say = self.plan.options.place, self.plan.ledger.say
        tags |= self.pending.pop(fingerprint, {})
        self.live.start(fingerprint, item.label, params, tags, lambda: curve_points(item.parts, place, say))

    def _tag(self, fingerprint: str, tags: dict[str, str]) -> None:
        """Tags of a trial's run, now or once it is made."""
        if fingerprint in self.shown:
            self.live.tag(fingerprint, tags)
        else:
            self.pending.setdefault(fingerprint, {}).update(tags)

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
                self._tag(item.fingerprint, {Tags.WARNING: result["message"]})
            case part if part.startswith(WAITING):
                if item.fingerprint not in self.waiting:
                    self.display.line(f"{item.label}: {part}")
                self.waiting.add(item.fingerprint)
                self.display.update(item.label, TRAINING_SHARE if item.fingerprint in self.shown else 0.0, part)
            case part if part == STARTING:
                self._works(item)
                self.display.update(item.label, 0.0, part)
            case part:
                self._works(item)
                self.display.update(item.label, TRAINING_SHARE + (1 - TRAINING_SHARE) * result["share"], part)

    def retry(self, item: Work, reason: str, error: str, attempt: int, attempts: int) -> None:
        """A trial failed and is begun again: attempt number `attempt`, from 1, of at most `attempts`."""
        reasons = self.retried.setdefault(item.fingerprint, [])
        reasons.append(reason)
        self.display.line(f"{item.label}: {reason}; attempt {attempt} of {attempts} goes on at its last checkpoint")
        tags = {Tags.ATTEMPTS: str(attempt), Tags.RETRIED: "; ".join(reasons)}
        self._tag(item.fingerprint, tags)

    def fail(self, item: Work, reason: str, error: str) -> None:
        """A trial failed: FAILED with its reason; the next call of the sweep tries it again."""
        self.open.pop(item.fingerprint)
        if item.fingerprint in self.shown or item.fingerprint not in self.waiting:  # else its run is another driver's
            self._works(item)
            self.live.tag(item.fingerprint, {Tags.REASON: reason, Tags.ERROR: error})
            if reason == "diverged":  # the one failure that is a record
                self._close(item, "FAILED")
            else:
                self.live.close(item.fingerprint, "FAILED")
        self.failed[item.fingerprint] = reason
        self.display.end(item.label, f"FAILED ({reason}): {error}")

    def kill(self, fingerprint: str, reason: str) -> None:
        """A trial was stopped from outside: KILLED; the same command takes it up at its last checkpoint. The run of one
        that another driver is at goes on."""
        self.open.pop(fingerprint)
        if fingerprint in self.shown:
            self.live.tag(fingerprint, {Tags.REASON: reason})
            self.live.close(fingerprint, "KILLED")

    def kill_all(self, reason: str) -> None:
        """`kill` for every trial under way."""
        for fingerprint in list(self.open):
            self.kill(fingerprint, reason)

    def _training(self, item: Work, record: dict[str, float]) -> None:
        point = Record(**record)  # type: ignore[arg-type]  # plain data of one
        self._works(item)
        self.live.log(item.fingerprint, point_of(point))
        note = f"loss {point.loss:.4f} · {point.images_per_second:.0f} images/s"
        self.display.update(item.label, TRAINING_SHARE * point.images_seen / item.experiment.training.images, note)

    def _done(self, item: Work, result: dict[str, Any]) -> None:
        self._works(item)
        self.live.tag(item.fingerprint, {key: str(value) for key, value in result["environment"].items()})
        self._close(item, "FINISHED")
        del self.open[item.fingerprint]
        self.finished.add(item.fingerprint)
        name = metric_name("fd", item.experiment.evaluation.detector_name)
        distance = result["metrics"].get(name, math.nan)
        self.display.end(item.label, f"validation loss {result['metrics']['val/loss']:.4f} · distance {distance:.2f}")

    def _close(self, item: Work, status: Status) -> None:
        place, say = self.plan.options.place, self.plan.ledger.say
        self.live.close(item.fingerprint, status, lambda: recorded_view(entry_of(item), place, say))
