"""Carries out a task in the process that gets it: called by every executor, the same everywhere."""

from __future__ import annotations

import os
import socket
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import torch

from pforce.base.words import counted
from pforce.data import DataError, Manifest, ensure
from pforce.metrics.detectors import Detector
from pforce.metrics.features import read_features
from pforce.metrics.reference import BATCH
from pforce.parallel import ALONE, Workers
from pforce.records.ledger import Ledger
from pforce.records.parts import Part, cell_parts
from pforce.records.record import Record
from pforce.records.row import joined, training_metrics
from pforce.sampling import Euler
from pforce.storage import Storage
from pforce.training import Callback, Diverged, Stopped
from pforce.training.checkpoint import CheckpointError
from pforce.training.loop import use_bfloat16
from pforce.trial.attempts import MOST_TRACEBACK, AttemptLog, shortened
from pforce.trial.draw import BLOCK, folder_of
from pforce.trial.drawn_images import draw_blocks, read_pictures, record_metrics
from pforce.trial.failures import FINAL, Failure, failure_of
from pforce.trial.folder import training_folder
from pforce.trial.jobs import Drawer, Keeper, blocks_in, ends_of
from pforce.trial.measurable import Measurable
from pforce.trial.measure import measure
from pforce.trial.readers import reader_of, readers, store_of
from pforce.trial.reference import REFERENCES, training_images
from pforce.trial.run import run_trial
from pforce.trial.subject import Subject
from pforce.trial.task import (
    STOPPED,
    Done,
    Draw,
    Failed,
    Handed,
    Measure,
    MeasureImages,
    Spent,
    Task,
    Train,
)
from pforce.trial.telling import Newest, Report, Reports, StoppedAlone, Telling, no_news, warnings_to
from pforce.trial.train import train_trial
from pforce.trial.watch import Watch
from pforce.trial.where import Paths, Where

MOST_MESSAGE = 4_000
"""Most characters of a failure's message in an event; the log has all."""
MOST_SAID = 20_000
"""Most characters of a traceback in an event."""


@dataclass(frozen=True)
class Seat:
    """The resources of a process that carries out tasks. Nothing here changes results beyond rounding."""

    device: torch.device
    threads: int
    devices: float
    """Devices that a task occupies, over all workers, for device-hours (on a CPU: cores)."""
    workers: Workers = ALONE
    own: bool = True
    """Whether the process does nothing else, so that its output belongs to the attempt."""
    callbacks: Sequence[Callback] = ()
    """Callbacks of all trainings."""


class AttemptFailed(RuntimeError):
    """An attempt failed in a way that makes this process unfit for further tasks: it should end, and another process
    may retry."""

    def __init__(self, failed: Failed) -> None:
        self.failed = failed
        super().__init__(f"{failed.failure.reason}: {failed.failure.message}")

    def __reduce__(self) -> tuple[type[AttemptFailed], tuple[Failed]]:
        return AttemptFailed, (self.failed,)


TOGETHER = (Diverged, CheckpointError, Stopped)
"""Errors that all workers of a group raise at once, so that they can continue with the next task."""


def find_data(task: Train) -> Path:
    """The folder of the data set on this machine, built here if possible. DataError where it is not the planned one."""
    folder = Path(task.data)
    if task.experiment.data.name != "shards" and not folder.exists():
        folder = ensure(task.experiment.data, progress=False)
    found = Manifest.load(folder).hash
    if found != task.inputs.data:
        raise DataError(
            f"{folder} on this machine holds other data (hash {found[:12]}) than was planned with "
            f"({task.inputs.data[:12]}): the same versions of the packages, or a shared folder, are needed"
        )
    return folder


def _place_of(task: Task) -> tuple[Storage, str]:
    """The storage, and the folder in it that keeps the logs of attempts at a task."""
    match task:
        case Train():
            return Storage.open(task.storage), training_folder(task.training)
        case Measure():
            model = task.model
            own = folder_of(model.request.drawing(model.sha256).digest)
            return Storage.open(model.storage), model.training or own
        case MeasureImages():
            return Storage.open(task.storage), f"evaluations/{task.id}"
        case Draw():
            return Storage.open(task.job.storage), folder_of(task.job.identity)
        case _:
            assert_never(task)


class Performer:
    """Carries out one task after the other. A model that several tasks measure is kept in memory."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.loaded: tuple[object, Any] | None = None
        """The key of the last task's model, and the model."""

    def __call__(self, handed: Handed, report: Report, newest: Newest = no_news) -> None:
        """Carry out a task and report its events; the last one is Done or Failed.

        Args:
            newest: gives the newest answer without waiting; asked at each step of a training.

        Raises AttemptFailed, not reported yet, where this process should end, because its state may be broken, or
        because the other workers of its group are in the middle of a step.
        """
        seat, task, workers = self.seat, handed.task, self.seat.workers
        torch.set_num_threads(seat.threads)
        storage, folder = _place_of(task)
        about = (
            f"attempt {handed.attempt} at {task.label} ({task.id[:12]}), {time.strftime('%Y-%m-%d %H:%M:%S %Z')}, host "
            f"{socket.gethostname()}, process {os.getpid()}, {seat.device}, {counted(seat.threads, 'thread')}, torch "
            f"{torch.__version__}"
        )
        log = AttemptLog(storage, folder, about, rank=workers.rank)
        telling = Telling(handed, report, log, workers, newest)
        try:
            with self._output(task, log), warnings_to(telling.warn):
                try:
                    ended: Done | Failed = self._do(task, telling)
                    log.line("done")
                except Exception as error:
                    ended = self._failed(error, task, telling)
                if log.problem and workers.first:
                    telling.warn(log.problem)
            telling.say(ended)
        finally:
            log.close()

    @contextmanager
    def _output(self, task: Task, log: AttemptLog) -> Iterator[None]:
        """Redirect a training's output into its log. Shorter tasks, of which there may be hundreds, get a log only with
        a warning or an error."""
        if not isinstance(task, Train):
            yield
            return
        workers = self.seat.workers
        number = workers.first_does(log.open)
        if not workers.first:
            log.open(number)
        with log.captured() if self.seat.own else nullcontext():
            yield

    def _failed(self, error: Exception, task: Task, telling: Telling) -> Failed:
        """The event for an error. Raises AttemptFailed where the process should end."""
        stopped = isinstance(error, Stopped)
        failure = Failure(STOPPED, str(error)) if stopped else failure_of(error)
        failure = Failure(failure.reason, shortened(failure.message, MOST_MESSAGE))
        text = "" if stopped else shortened("".join(traceback.format_exception(error)), MOST_TRACEBACK)
        telling.log.open()
        telling.log.line(STOPPED if stopped else f"{failure.reason}: {failure.message}")
        telling.log.write(text)
        failed = Failed(telling.task, telling.attempt, failure, shortened(text, MOST_SAID), telling.log.name)
        alone = self.seat.workers.count == 1
        together = alone or (isinstance(error, TOGETHER) and not isinstance(error, StoppedAlone))
        if not together or not (stopped or failure.reason in FINAL or _left_whole(task, error)):
            raise AttemptFailed(failed) from error
        return failed

    def _do(self, task: Task, telling: Telling) -> Done:
        started = time.perf_counter()
        done = Done(task.id, telling.attempt)
        match task:
            case Train():
                done = self._train(task, telling, done)
            case Measure():
                done = self._measure(task, telling, done)
            case MeasureImages():
                done = self._measure_images(task, telling, done)
            case Draw():
                done = self._draw(task, telling, done)
            case _:
                assert_never(task)
        return replace(done, seconds=time.perf_counter() - started)

    # --- one kind of task each -----------------------------------------------------------------------------------

    def _train(self, task: Train, telling: Telling, done: Done) -> Done:
        seat, experiment = self.seat, task.experiment
        self.loaded = None
        where = Where(
            device=seat.device, workers=seat.workers, sharding=task.sharding, devices=seat.devices,
            callbacks=[Reports(telling), *seat.callbacks],
            watch=Watch(telling.begins, telling.waits, telling.progress, telling.snapshot), provenance=task.provenance,
        )  # fmt: skip
        paths = Paths(find_data(task), Storage.open(task.storage))
        metrics: dict[str, float] = {}
        if task.measures:
            row = run_trial(experiment, paths, where, inputs=task.inputs, request=task.request)
            if row is not None:
                metrics = row.metrics
        else:
            ledger = Ledger(paths.storage, lambda line: warnings.warn(line, stacklevel=2))
            trained = train_trial(experiment, paths, cell_parts(experiment, task.inputs), where, ledger)
            if trained.record is not None:
                metrics = training_metrics(trained.record)
        environment = {
            "device": _device_name(seat.device),
            "precision": "bfloat16" if use_bfloat16(experiment.training.precision, seat.device) else "float32",
            "threads": str(seat.threads),
            "workers": str(seat.workers.count),
        }
        if task.sharding != "none":
            environment["sharding"] = task.sharding
        if seat.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes may share the device
        return replace(done, metrics=metrics, environment=environment)

    def _subject(self, model: Measurable) -> Subject:
        """The model in memory, with the task's sampler; tasks may differ in their sampler and measurements."""
        known = replace(model, request=replace(model.request, sampler={}, seed=0, images=0), sampler=Euler())
        if self.loaded is None or self.loaded[0] != known:
            self.loaded = None  # frees its memory first
            self.loaded = (known, model.subject(self.seat.device, devices=self.seat.devices))
        found: Subject = self.loaded[1]
        return replace(found, sampler=model.sampler)

    def _measure(self, task: Measure, telling: Telling, done: Done) -> Done:
        model = task.model
        subject, request = self._subject(model), model.request
        ledger = Ledger(Storage.open(model.storage), lambda line: warnings.warn(line, stacklevel=2))
        watch = Watch(telling.begins, telling.waits, telling.progress)
        if task.what == "all":
            telling.begins()
        match task.what:
            case "all":
                found = measure(request, subject, ledger, watch=watch)
                assert found is not None
                drawn = ledger.get(request.drawn(subject.weights)) if request.images else None
                return replace(done, metrics=joined(request, subject.weights, found, drawn))
            case "held_out":
                measure(replace(request, images=0), subject, ledger, watch=watch)
                return done
            case "images":
                return replace(done, spent=self._range(task, subject, ledger, watch))
            case _:
                assert_never(task.what)

    def _range(self, task: Measure, subject: Subject, ledger: Ledger, watch: Watch) -> Spent:
        assert subject.detector is not None
        request = task.model.request
        detector = reader_of(subject.detector(), request.metrics)
        drawing = request.drawing(subject.weights).digest
        store = store_of(ledger, drawing, detector)
        kept = {}
        if any(group[0].first % BLOCK for group in task.groups):  # the rest of a block that is partly kept
            kept = store[0].load(request.images)
            read_pictures(store, detector, kept, request.images, subject.device)
        images = passes = 0
        seconds = 0.0
        all_images = sum(span.end - span.first for group in task.groups for span in group)
        for block in draw_blocks(
            request, subject, detector, task.groups, kept=kept, store=store, wait=watch.waits,
            others=readers(drawing, [other for other, _ in subject.further], ledger),
        ):  # fmt: skip
            images += block.drawn
            passes = block.forward_passes
            seconds += block.seconds
            watch.progress("sampling", images / all_images)
        nfe = subject.sampler.schedule().num_function_evaluations
        return Spent(images, nfe, passes, seconds, _device_name(subject.device))

    def _measure_images(self, task: MeasureImages, telling: Telling, done: Done) -> Done:
        ledger = Ledger(Storage.open(task.storage), lambda line: warnings.warn(line, stacklevel=2))
        found: dict[str, Record] = {}
        for place, detector in enumerate((task.detector, *task.further)):
            further = None if place == 0 else detector.name
            parts = {metric: task.parts[key] for metric, key in task.keys(further).items()}
            if parts:
                found |= self._measure_given(task, detector.to(self.seat.device), parts, ledger, telling)
        metrics = {name: value for record in found.values() for name, value in record.numbers().items()}
        return replace(done, metrics=metrics)

    def _measure_given(
        self, task: MeasureImages, detector: Detector, parts: Mapping[str, Part], ledger: Ledger, telling: Telling
    ) -> dict[str, Record]:
        """Measure given images with one detector; returns digest → record."""
        count = len(task.images)
        telling.progress("features of the reference", 0.0)
        cache = ledger.storage.root / REFERENCES
        reference = task.reference.statistics(detector, cache, device=self.seat.device)
        features = read_features(
            reader_of(detector, list(parts)), task.images.batches(BATCH), size=min(BATCH, count),
            device=self.seat.device,
            progress=lambda read: telling.progress("features of the images", read / count),
        )  # fmt: skip
        data, held_out = task.training or ("", 0)
        found = record_metrics(
            parts, features, reference, ledger, progress=telling.progress,
            training=lambda: training_images(Path(data), held_out, detector, cache, device=self.seat.device),
        )  # fmt: skip
        return {record.digest: record for record in found.values()}

    def _draw(self, task: Draw, telling: Telling, done: Done) -> Done:
        job = task.job
        if self.loaded is None or self.loaded[0] != job:
            self.loaded = None
            self.loaded = (job, Drawer(job, self.seat.device))
        drawer: Drawer = self.loaded[1]
        keeper = Keeper(job, ends_of(job, blocks_in(task.group)))
        images = nfe = passes = 0
        seconds = 0.0
        for span in task.group:
            drawn = drawer(span)
            keeper.take(drawn)
            images += span.end - span.first
            nfe, passes, seconds = drawn.num_function_evaluations, drawn.forward_passes, seconds + drawn.seconds
            telling.progress("sampling", images / sum(each.end - each.first for each in task.group))
        return replace(done, spent=Spent(images, nfe, passes, seconds, _device_name(self.seat.device)))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _left_whole(task: Task, error: Exception) -> bool:
    """Whether the process is fit for other tasks after an error that may not be the task's fault. A failed training is
    retried in another process; a failed measurement leaves the process usable, unless the device's state is broken or
    memory is exhausted."""
    broken = isinstance(error, torch.AcceleratorError | MemoryError)
    return not isinstance(task, Train) and not broken
