"""Measuring on workers: a model as it travels, what a worker does with it, and how many of them share one.

What a worker draws it keeps in the storage, in blocks that survive a kill; what it measures it records there. So the
driver hands out tasks and joins what is known, and nothing large travels.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from pforce.metrics.config import EvaluationConfig
from pforce.metrics.detectors import Detector, load_detector
from pforce.metrics.reference import ReferenceStatistics
from pforce.orchestration.failures import failure_of
from pforce.orchestration.pool import Pool
from pforce.records.ledger import Ledger
from pforce.records.parts import Request
from pforce.records.provenance import made_on
from pforce.records.row import joined
from pforce.sampling import Sampler
from pforce.storage import Storage
from pforce.training.checkpoint import SNAPSHOTS
from pforce.trial.draw import BLOCK, IMAGES, Blocks, Span, count_of, features_folder, folder_of, spans_to_draw
from pforce.trial.folder import EXPERIMENT
from pforce.trial.jobs import decoder_for
from pforce.trial.measure import Subject, cycle_of, draw_blocks, measure, missing, read_pictures, record_drawing
from pforce.trial.mirror import TrialMirror
from pforce.trial.reference import REFERENCES, HeldOut, ReferenceImages, check_detector
from pforce.trial.source import Source, SourceError, Weights, load_source


class Failed(NamedTuple):
    """A measurement that could not be made."""

    reason: str
    error: str


@dataclass(frozen=True)
class Measurable:
    """A model, and what it is measured with, by names and paths: what a worker is given."""

    source: str
    """Path of the model, as `load_source` reads it."""
    sha256: str
    """Hash of its configuration and weights: the source must still be this one when it is read again."""
    request: Request
    evaluation: EvaluationConfig
    sampler: Sampler
    storage: str
    """URI of the storage that keeps drawings and records."""
    reference: ReferenceImages
    data: str | None = None
    """Folder of the data set with the held-out images."""
    weights: Weights = "ema"
    heads: int | None = None
    """Attention heads of an original SiT of unusual size."""
    decoder: str | None = None
    """Folder of an autoencoder whose decoder makes pixels of a model's latents."""
    detector: str = "openmoji"
    detector_weights: str | None = None
    training: str | None = None
    """Folder of the training below the storage, where the model is one of it: pulled out of a bucket."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Source:
        """The model as this machine has it. SourceError where it is no longer the one that was planned with."""
        path = self.source
        storage = Storage.open(self.storage)
        if storage.remote and self.training is not None:
            snapshot = Path(self.source)
            images = int(snapshot.name) if snapshot.parent.name == SNAPSHOTS else None
            TrialMirror(storage, self.training, EXPERIMENT).fetch(images)
            path = str(storage.root / self.training / snapshot.parent.name / snapshot.name)
        source = load_source(path, weights=self.weights, heads=self.heads)
        if source.sha256 != self.sha256:
            raise SourceError(
                f"{path} now holds other weights ({source.sha256[:12]}) than when this was planned "
                f"({self.sha256[:12]}): give the checkpoint's own folder (step_…)"
            )
        return source

    def subject(self, device: torch.device, source: Source | None = None) -> Subject:
        """The model in memory, on a device, ready to be measured. DetectorError, AutoencoderError, SourceError pass."""
        source = source or self.load()
        storage = Storage.open(self.storage)
        held_out = HeldOut(Path(self.data)) if self.data is not None else None
        loaded: list[Detector] = []

        def detector() -> Detector:
            if not loaded:
                wanted = self.request.detector.get("sha256")
                found = load_detector(self.detector, self.detector_weights, wanted).to(device)
                check_detector(found, self.request.detector)
                loaded.append(found)
            return loaded[0]

        def labels() -> torch.Tensor:
            classes = source.model.config.classes
            if held_out is None:
                return torch.arange(classes)
            return cycle_of(self.evaluation, held_out, classes)

        def reference() -> ReferenceStatistics:
            return self.reference.statistics(detector(), storage.root / REFERENCES, device=device)

        return Subject(
            model=source.model.to(device),
            weights=self.sha256,
            device=device,
            sampler=self.sampler,
            labels=labels,
            detector=detector,
            reference=reference,
            held_out=None if held_out is None else lambda: held_out(self.evaluation.held_out_images),
            batch=self.evaluation.batch,
            decode=None if self.decoder is None else decoder_for(source, self.decoder, device),
            devices=1.0 if device.type == "cuda" else float(torch.get_num_threads()),
            provenance={**made_on(device), **self.provenance},
        )


class Task(NamedTuple):
    """What a worker is asked to do with one of its models."""

    model: int
    """Its number."""
    what: Literal["all", "held_out", "draw"]
    sampler: Sampler | None = None
    """Another one than the model's."""
    request: Request | None = None
    groups: tuple[tuple[Span, ...], ...] = ()
    """Passes to draw, by blocks."""


class Done(NamedTuple):
    """What came of a task; all else is in the storage."""

    metrics: dict[str, float]
    images: int = 0
    """That were drawn."""
    forward_passes: int = 0
    """Per image."""
    sampling_seconds: float = 0.0
    seconds: float = 0.0
    """Seconds of the worker."""


class Measurer:
    """What a worker does: one model at a time in memory, measured with one task after the other."""

    def __init__(self, models: tuple[Measurable, ...], device: torch.device) -> None:
        self.models, self.device = models, device
        self.loaded: tuple[int, Subject] | None = None
        if len(models) == 1:
            self._subject(0)  # what is wrong with it is said before the first task

    def _subject(self, number: int) -> Subject:
        if self.loaded is None or self.loaded[0] != number:
            self.loaded = (number, self.models[number].subject(self.device))
        return self.loaded[1]

    def __call__(self, task: Task) -> Done | Failed:
        """Carry out a task; what fails is told with its reason, and the other tasks go on."""
        started = time.perf_counter()
        try:
            done = self._do(task)
        except torch.AcceleratorError:
            raise  # the process's CUDA state is broken: it ends, and another one takes the task
        except Exception as error:
            return Failed(*failure_of(error))
        return done._replace(seconds=time.perf_counter() - started)

    def _do(self, task: Task) -> Done:
        model = self.models[task.model]
        subject, request = self._subject(task.model), task.request or model.request
        subject = replace(subject, sampler=task.sampler or model.sampler)
        ledger = Ledger(Storage.open(model.storage), lambda line: warnings.warn(line, stacklevel=2))
        match task.what:
            case "all":
                found = measure(request, subject, ledger)
                assert found is not None
                drawn = ledger.get(request.drawn(subject.weights))
                return Done(joined(request, subject.weights, found, drawn))
            case "held_out":
                measure(replace(request, images=0), subject, ledger)
                return Done({})
            case "draw":
                return self._draw(request, subject, ledger, task.groups)

    def _draw(
        self, request: Request, subject: Subject, ledger: Ledger, groups: Sequence[Sequence[Span]]
    ) -> Done:  # fmt: skip
        assert subject.detector is not None
        detector, drawing = subject.detector(), request.drawing(subject.weights).digest
        features = Blocks(ledger.storage, features_folder(drawing, detector))
        pictures = Blocks(ledger.storage, f"{folder_of(drawing)}/{IMAGES}")
        kept = {}
        if any(group[0].first % BLOCK for group in groups):  # the rest of a block, of which images or features are kept
            kept = features.load(request.images)
            read_pictures((features, pictures), detector, kept, request.images, subject.device)
        images = passes = 0
        seconds = 0.0
        for block in draw_blocks(request, subject, detector, groups, kept=kept, store=(features, pictures)):
            images += block.drawn
            passes = block.forward_passes
            seconds += block.seconds
        return Done({}, images, passes, seconds)


class Shared:
    """Drawings of several models that workers share, block by block, and what they cost."""

    def __init__(self, models: Sequence[Measurable], ledger: Ledger) -> None:
        self.models, self.ledger = models, ledger
        self.spent: dict[int, list[Done]] = {number: [] for number in range(len(models))}
        self.left: dict[int, int] = dict.fromkeys(range(len(models)), 0)
        """Model → tasks that are not done."""
        self.started = time.time()
        self.sharers: dict[int, list[int]] = {}
        """Model that draws → all whose images come of the same drawing; those of them that ask for fewer wait."""

    def tasks(self, *, held_out: bool) -> list[Task]:
        """What is missing, in tasks of about a block; with `held_out` those measurements, too."""
        found: list[Task] = []
        drawings: dict[str, list[int]] = {}
        for number, model in enumerate(self.models):
            todo = missing(model.request, model.sha256, self.ledger)
            if todo.metrics:
                drawings.setdefault(self.folder(model), []).append(number)
            if held_out and todo.held_out:
                found.append(Task(number, "held_out"))
                self.left[number] += 1
        for several in drawings.values():
            drawer = max(several, key=lambda number: self.models[number].request.images)
            self.sharers[drawer] = several
            tasks = [Task(drawer, "draw", groups=(tuple(group),)) for group in self.groups(self.models[drawer])]
            for number in several:
                self.left[number] += len(tasks)
            found += tasks
        return found

    def concerned(self, task: Task) -> list[int]:
        """The models that wait for a task."""
        return self.sharers[task.model] if task.what == "draw" else [task.model]

    def folder(self, model: Measurable) -> str:
        """Folder of the features of a model's images."""
        detector = load_detector(model.detector, model.detector_weights, model.request.detector.get("sha256"))
        return features_folder(model.request.drawing(model.sha256).digest, detector)

    def groups(self, model: Measurable) -> list[list[Span]]:
        """Passes that are missing of a model's drawing."""
        drawing, storage = model.request.drawing(model.sha256).digest, self.ledger.storage
        kept = Blocks(storage, self.folder(model)).load(model.request.images)
        ends = {first: first + count_of(arrays) for first, arrays in kept.items()}
        pictures = Blocks(storage, f"{folder_of(drawing)}/{IMAGES}")
        names = pictures.names()
        for first in (first for first in names if first < model.request.images):
            found = pictures.block(first, names)
            ends[first] = max(ends.get(first, first), first + (count_of(found) if found else 0))
        return spans_to_draw(model.request.images, model.evaluation.batch, ends)

    def take(self, task: Task, done: Done) -> list[int]:
        """A task is done; the models of which now all are."""
        self.spent[task.model].append(done)
        for number in self.concerned(task):
            self.left[number] -= 1
        return [number for number in self.concerned(task) if not self.left[number]]

    def last(self, number: int, finished: Collection[int]) -> bool:
        """Whether nobody else waits for a model's features."""
        several = next((several for several in self.sharers.values() if number in several), [number])
        return set(several) <= {number, *finished}

    def record(self, number: int, subject: Subject) -> None:
        """What a model's drawing has cost, as its record."""
        spent = [done for done in self.spent[number] if done.images]
        if spent:
            record_drawing(
                self.models[number].request, subject, self.ledger, started=self.started,
                images=sum(done.images for done in spent), passes=spent[0].forward_passes,
                sampling=sum(done.sampling_seconds for done in spent), seconds=sum(done.seconds for done in spent),
            )  # fmt: skip


Workers = Pool[Task, Done | Failed]
