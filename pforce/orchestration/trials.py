"""The tasks of a sweep: one training with its measurements per missing cell."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from pforce.base.words import counted
from pforce.config import flat_params
from pforce.metrics.distances import metric_name
from pforce.orchestration.drive import Source
from pforce.orchestration.growth import Growth
from pforce.orchestration.plan import Plan, entry_of, finished_of
from pforce.orchestration.recorder import TRAINING_SHARE, Entry, Recorder
from pforce.orchestration.sweep import Work
from pforce.records import provenance
from pforce.records.parts import decay_of
from pforce.results.shown import curve_points, recorded_view
from pforce.storage import StorageError
from pforce.tracking import Tags
from pforce.trial.task import Done, Failed, Idle, Snapshot, Task, Train

LOOK_SECONDS = 5.0
"""Fewest seconds between two looks at what other processes do and have done."""
LOOK_SHARE = 0.02
"""Most of a driver's time that such looks may take."""


def train_task(plan: Plan, item: Work, snapshots: Sequence[int] = ()) -> Train:
    """The task of a cell.

    Args:
        snapshots: images seen at which its training leaves snapshots for others to measure.
    """
    experiment, training = item.experiment, item.experiment.training
    if snapshots:
        experiment = replace(experiment, training=replace(training, snapshots=tuple(snapshots)))
    return Train(
        id=item.fingerprint,
        label=item.label,
        experiment=experiment,
        inputs=plan.inputs,
        data=str(plan.data),
        storage=plan.options.place.uri,
        training=item.training,
        measures=plan.options.evaluation_workers is None,
        sharding=plan.options.sharding,
        provenance=provenance.code(),
        request=item.parts.request if item.cells[0].rung else None,
    )


def entries(plan: Plan, tags: dict[str, str]) -> Callable[[str], Entry]:
    """A function from a cell's digest to the content of its run.

    Args:
        tags: tags of every run.
    """
    place, say = plan.options.place, plan.ledger.say

    def entry(cell: str) -> Entry:
        item = plan.item(cell)
        inputs = {f"input.{name}": value for name, value in plan.inputs.tags().items()}
        own = {**tags, **inputs, "weights": "ema", Tags.SEED: str(item.experiment.seed), Tags.TRAINING: item.training}
        if (branch := decay_of(item.parts.training)) is not None:
            own[Tags.TRUNK] = branch[0]
        return Entry(
            cell, item.label, {name: str(value) for name, value in flat_params(item.experiment).items()}, own,
            past=lambda: curve_points(item.parts, place, say),
            whole=lambda: recorded_view(entry_of(item), place, say),
        )  # fmt: skip

    return entry


def note_of(item: Work, metrics: dict[str, float]) -> str:
    """The note on the display for a finished cell."""
    distance = metrics.get(metric_name("fd", item.experiment.evaluation.detector_name), math.nan)
    loss = f"validation loss {metrics['val/loss']:.4f}"
    return loss if math.isnan(distance) else f"{loss} · distance {distance:.2f}"


class Trials(Source):
    """The source of a sweep's missing trainings.

    Where a training is measured at several numbers of images seen, and there are other workers (`beside`), it runs
    through to its end and leaves snapshots, which others measure meanwhile. Without others it is measured in between.

    Cells whose training another process runs come last, and are given back as long as there is something else to do.
    """

    def __init__(self, plan: Plan, recorder: Recorder) -> None:
        self.plan, self.recorder = plan, recorder
        self.supply = plan.supply or Growth(plan)
        missing = plan.missing
        self.waiting = deque(missing)
        self.work = {item.fingerprint: item for item in missing}
        self.under_way: Counter[str] = Counter()
        """Training → cells of it that workers have."""
        self.trained: dict[str, Done] = {}
        """Digest of a cell → result of its training, where its measurements are still to come."""
        self.beside = False
        self.snapshots: set[str] = set()
        """Digests of waiting cells whose snapshots are there."""
        self.look_at = time.monotonic() + LOOK_SECONDS

    def next(self) -> Task | Idle:
        limit = self.plan.options.fail_fast
        if limit is not None and len(self.recorder.failed) >= limit:
            if left := len(self.waiting) + self.supply.left:
                self.recorder.display.line(
                    f"{counted(limit, 'trial')} failed (--fail-fast {limit}): {counted(left, 'trial')} not begun; the "
                    "same command begins them"
                )
            return Idle.END
        running = self.under_way.total()
        for added in self.supply.added(self.recorder.display, waiting=len(self.waiting), running=running):
            self.waiting.append(added)
            self.work[added.fingerprint] = added
        self._look()
        if not self.waiting:
            return Idle.WAIT if running and self.supply.open else Idle.END
        item = self._chosen()
        if item is None:
            return Idle.WAIT
        self.waiting.remove(item)
        self.snapshots.discard(item.fingerprint)
        leaves = sorted(each.parts.images_seen for each in self.waiting if each.training == item.training)
        below = [images for images in leaves if images < item.parts.images_seen]
        self.under_way[item.training] += 1
        return train_task(self.plan, item, below if self.beside else ())

    def _chosen(self) -> Work | None:
        """The waiting cell that is next; None where all wait for snapshots of trainings that run."""
        there = next((item for item in self.waiting if item.fingerprint in self.snapshots), None)
        if there is not None:
            return there
        # A worker with a cell whose training another one runs waits for it, while a third could be trained.
        item = next((item for item in self.waiting if self._is_free(item)), None)
        item = item or next((item for item in self.waiting if not self.under_way[item.training]), None)
        if item is None:
            return None if self.beside else self.waiting[0]
        if not self.beside:
            return item
        same = (each for each in self.waiting if each.training == item.training)
        return max(same, key=lambda each: each.parts.images_seen)

    def _is_free(self, item: Work) -> bool:
        """Whether nobody runs its training, as far as it is known."""
        return not self.under_way[item.training] and item.training not in self.plan.elsewhere

    def _look(self) -> None:
        """Look up, every now and then, what other processes are doing, and which waiting cells they have finished. A
        driver that shows its cells hands those out all the same, which shows them."""
        begun = time.monotonic()
        if begun < self.look_at:
            return
        with suppress(StorageError):  # of a bucket that is away, which is told where something has to be kept there
            self._look_now()
        ended = time.monotonic()
        self.look_at = ended + max(LOOK_SECONDS, (ended - begun) / LOOK_SHARE)

    def _look_now(self) -> None:
        plan, waiting = self.plan, list(self.waiting)
        plan.look_elsewhere(waiting)
        if self.recorder.live is not None:
            return
        plan.ledger.refresh()
        finished = finished_of(waiting, plan.ledger)
        self.waiting = deque(item for item in waiting if item.fingerprint not in finished)
        for item in waiting:
            if item.fingerprint in finished:
                self.supply.ended(item)
        self.recorder.elsewhere(sorted(finished))

    def gives_back(self, task: Task) -> bool:
        self._look()
        self.plan.elsewhere.add(self.work[task.id].training)
        return any(self._is_free(item) for item in self.waiting)

    def take_back(self, task: Task) -> None:
        item = self.work[task.id]
        self.under_way[item.training] -= 1
        self.waiting.append(item)

    def snapshot(self, task: Task, event: Snapshot) -> None:
        training = self.work[task.id].training
        own = (each for each in self.waiting if each.training == training)
        self.snapshots |= {each.fingerprint for each in own if each.parts.images_seen == event.images_seen}

    def done(self, task: Task, event: Done) -> None:
        assert isinstance(task, Train)
        item = self.work[task.id]
        self.under_way[item.training] -= 1
        if task.measures:
            self.recorder.finish(task.id, task.label, note_of(item, dict(event.metrics)), event.environment)
            self.supply.ended(item)
        else:
            self.trained[task.id] = event
            self.recorder.display.update(task.label, TRAINING_SHARE, "trained")

    def failed(self, task: Task, event: Failed) -> None:
        item = self.work[task.id]
        self.under_way[item.training] -= 1
        self.supply.ended(item)
