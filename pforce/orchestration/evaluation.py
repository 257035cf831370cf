"""The work of `pforce evaluate`: measures the missing parts of a model or of given images, draws figures, and shows a
run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from pforce.base.files import digest, write_json
from pforce.executors.executor import Workforce
from pforce.metrics.calibration import DECILES, Calibration, calibration_of
from pforce.metrics.context import ContextHelps, ContextUncertainty
from pforce.metrics.detectors import Detector
from pforce.metrics.difficulty import DifficultyCorrelation, PatchErrors, correlation_by_class
from pforce.metrics.held_out import MAP_IMAGES, SHOWN_TIMESTEPS, context_of, correlation_from, errors_of
from pforce.metrics.image_sets import ImageSet
from pforce.metrics.intervals import Estimate
from pforce.metrics.names import BOUNDS, COUNTS, CostName, MetricName, read_names
from pforce.orchestration.display import Display
from pforce.orchestration.drive import Source, drive, error_of
from pforce.orchestration.options import SCRATCH
from pforce.orchestration.plan import this_command
from pforce.orchestration.recorder import Entry, Recorder
from pforce.orchestration.shared import Shared, Wanted
from pforce.records.ledger import Ledger, Say
from pforce.records.parts import Part
from pforce.records.provenance import user
from pforce.records.record import Record
from pforce.records.row import BESIDE, joined
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.results import difficulty_figures as figures
from pforce.results.nearest_figure import nearest_of, pairs_figure
from pforce.results.pictures import NEAREST_PAIRS
from pforce.results.sweep_run import show_sweep
from pforce.tracking import Mirror, Tracker
from pforce.tracking.checks import why
from pforce.trial.draw import save_samples
from pforce.trial.held_out import arrays_of
from pforce.trial.measurable import Measurable
from pforce.trial.measure import missing
from pforce.trial.readers import reader_of, store_of
from pforce.trial.reference import REFERENCES, HeldOut, ReferenceImages
from pforce.trial.source import Source as Model
from pforce.trial.task import Done, Failed, Idle, Measure, MeasureImages, Task
from pforce.trial.where import choose_device

EXPERIMENT = "evaluations"
"""MLflow experiment of all evaluations."""
RESULT, SAMPLES, MAPS = "evaluation.json", "samples.png", "uncertainty_maps.png"
CLASS_TIMESTEP = 0.6
Of = TypeVar("Of")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation with all its inputs found and checked."""

    name: str
    """Name of the run."""
    detector: Detector
    reference: ReferenceImages
    about: Mapping[str, Any]
    """Description as flat parameters of its run."""
    model: Measurable | None = None
    """The model by names and paths; None for given images."""
    source: Model | None = None
    """The model in memory; None for given images."""
    images: ImageSet | None = None
    image_parts: Mapping[str, Part] = field(default_factory=dict)
    """Metric → part, for given images; of a further detector `frechet/dinov2`."""
    further: tuple[Detector, ...] = ()
    """Further detectors of the same images."""
    training: tuple[str, int] | None = None
    """Folder of the data set whose training images given images are compared with, and the number of held-out ones."""
    classes: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> list[Part]:
        """All parts that are measured."""
        if self.model is not None:
            return list(self.model.request.parts(self.model.sha256))
        return list(self.image_parts.values())

    def by_name(self, by_class: Mapping[int, Of]) -> dict[str, Of]:
        """Values of classes by the classes' names, where these are known."""
        return {(self.classes[c] if self.classes else f"class {c}"): of for c, of in sorted(by_class.items())}

    @cached_property
    def identity(self) -> str:
        """Digest of all parts, which names the folder of the figures and the run."""
        return digest("evaluation", sorted(part.digest for part in self.parts))


@dataclass
class Outcome:
    """The result of an evaluation."""

    metrics: dict[str, float]
    measured: bool
    """Whether anything was missing and has been measured."""
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


class Measuring(Source):
    """The source of an evaluation's missing tasks: with several workers, first the images in ranges, then everything
    that depends on them.

    Args:
        ranges: images that several workers draw; None where one worker does everything.
    """

    def __init__(self, e: Evaluation, ledger: Ledger, recorder: Recorder, ranges: Shared | None) -> None:
        self.e, self.ledger, self.recorder, self.ranges = e, ledger, recorder, ranges
        self.waiting = deque(ranges.tasks(held_out=False) if ranges else ())
        self.left = len(self.waiting)
        self.last: Task | None = self._all()

    def _all(self) -> Task | None:
        e = self.e
        if e.model is not None:
            todo = missing(e.model.request, e.model.sha256, self.ledger)
            return Measure(e.identity, e.name, e.model) if todo else None
        wanted = {name: part for name, part in e.image_parts.items() if self.ledger.get(part) is None}
        if not wanted:
            return None
        assert e.images is not None
        return MeasureImages(
            e.identity, e.name, e.images, wanted, e.reference, e.detector, self.ledger.storage.uri,
            further=e.further, training=e.training,
        )  # fmt: skip

    def next(self) -> Task | Idle:
        if self.waiting:
            return self.waiting.popleft()
        if self.left:
            return Idle.WAIT
        task, self.last = self.last, None
        return task or Idle.END

    def done(self, task: Task, event: Done) -> None:
        if isinstance(task, Measure) and task.what == "images":
            assert self.ranges is not None
            self.left -= 1
            if self.ranges.take(task, event):
                model = self.ranges.wanted[0].model
                self.ranges.record(0, lambda: model.subject(torch.device("cpu"), source=self.e.source))
        self.recorder.advance(task)

    def failed(self, task: Task, event: Failed) -> None:
        raise error_of(event)


def run(e: Evaluation, ledger: Ledger, folder: Path, console: Console, workforce: Workforce) -> Outcome:
    """Measure the missing parts, and write pictures, figures and `evaluation.json` into the folder.

    Raises KeyboardInterrupt on SIGINT and SIGTERM, and WorkFailed; images and records until then are kept.
    """
    started = time.perf_counter()
    absent = len(e.parts) - len(ledger.find(e.parts))
    if absent:
        _measure(e, ledger, console, workforce)
        ledger.refresh()
    found = ledger.find(e.parts)
    if e.model is not None:
        drawn = ledger.get(e.model.request.drawn(e.model.sha256)) if e.model.request.images else None
        metrics = joined(e.model.request, e.model.sha256, found, drawn)
    else:
        metrics = {name: value for record in found.values() for name, value in record.numbers().items()}
    metrics.pop(BESIDE, None)
    if absent:
        metrics[CostName.EVALUATION_SECONDS] = time.perf_counter() - started
    notes = list(dict.fromkeys(note for record in found.values() for note in record.notes))
    analyses = Analyses.of(e, ledger, found)
    files = _pictures(e, ledger, analyses, folder)
    record = {"evaluation": e.identity, "about": dict(e.about), "metrics": metrics, "notes": notes,
              "records": sorted(found), "curves": analyses.curves()}  # fmt: skip
    write_json(folder / RESULT, record)
    return Outcome(metrics, absent > 0, notes, [*files, folder / RESULT])


def _measure(e: Evaluation, ledger: Ledger, console: Console, workforce: Workforce) -> None:
    if e.model is None:  # given images are on this machine
        workforce = Workforce("local")
    ranges: Shared | None = None
    images = 0
    if e.model is not None and workforce.name != "local" and missing(e.model.request, e.model.sha256, ledger).metrics:
        device = choose_device()  # so that a broken reference is found before any worker draws
        e.reference.statistics(e.detector.to(device), ledger.storage.root / REFERENCES, device=device)
        ranges = Shared([Wanted("", e.name, e.model)], ledger)
        images = e.model.request.images
    display = Display(console, "evaluation", images + 1, 0, "images" if images else "evaluation")

    def units(task: Task) -> int:
        if isinstance(task, Measure) and task.what == "images":
            return sum(span.end - span.first for group in task.groups for span in group)
        return 1

    recorder = Recorder(None, display, lambda cell: Entry(cell, e.name), units=units)
    source = Measuring(e, ledger, recorder, ranges)
    scratch = ledger.storage.root / SCRATCH
    with workforce.make("evaluate", scratch, most=source.left, say=display.line) as at, display:
        drive(at, source, recorder)


@dataclass
class Analyses:
    """Analyses of a model's difficulty head for figures, from records and their arrays."""

    correlations: list[DifficultyCorrelation] = field(default_factory=list)
    by_class: dict[int, DifficultyCorrelation] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)
    errors: list[PatchErrors] = field(default_factory=list)
    maps: dict[float, Any] = field(default_factory=dict)
    helps: list[ContextHelps] = field(default_factory=list)
    uncertainty: list[ContextUncertainty] = field(default_factory=list)

    @classmethod
    def of(cls, e: Evaluation, ledger: Ledger, found: Mapping[str, Record]) -> Analyses:
        """The analyses of an evaluation's held-out measurements."""
        result = cls()
        if e.model is None:
            return result
        patches = e.source.model.config.patches if e.source else 0
        for (analysis, key), part in e.model.request.held_out_parts(e.model.sha256).items():
            record = found.get(part.digest)
            if record is None or analysis == "loss":
                continue
            t, arrays = float(key), arrays_of(ledger, record)
            if analysis == "difficulty":
                images = int(record.number(BESIDE)) if BESIDE in record.values else 0
                result.correlations.append(
                    correlation_from(record.values, t, images=images, patches=images * patches)
                )  # fmt: skip
                result._difficulty(arrays or {}, t)
            elif arrays is not None:
                helps, uncertainty = context_of(arrays, t)
                result.helps.append(helps)
                result.uncertainty.append(uncertainty)
        return result

    def _difficulty(self, arrays: Mapping[str, Any], t: float) -> None:
        errors = errors_of(dict(arrays), t)
        if errors is None or t not in SHOWN_TIMESTEPS:
            return
        self.errors.append(errors)
        self.maps[t] = arrays["maps"]
        if errors.patches >= DECILES:
            self.calibrations.append(calibration_of(errors))
        if t == CLASS_TIMESTEP:
            self.by_class = correlation_by_class(errors)

    def curves(self) -> dict[str, Any]:
        """All curves of the figures, as plain data."""
        return {
            "difficulty": [r._asdict() for r in self.correlations],
            "difficulty_by_class": {str(label): r._asdict() for label, r in self.by_class.items()},
            "context_helps": [{name: _plain(value) for name, value in c._asdict().items()} for c in self.helps],
            "context_uncertainty": [
                {"t": u.t, "context_time": u.context_time, "difference": u.difference._asdict(), "images": u.images,
                 "alone_mean": float(u.alone.mean()), "with_context_mean": float(u.with_context.mean())}
                for u in self.uncertainty
            ],
        }  # fmt: skip


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _class_distances(e: Evaluation, ledger: Ledger) -> dict[int, Estimate]:
    """Class → distance of its images in the first detector's features; empty where it is not measured."""
    found: dict[int, Estimate] = {}
    for part in e.parts:
        record = ledger.get(part) if part.canonical.get("metric") == "class_kernel" else None
        numbers = record.numbers() if record is not None else {}
        for text, name in read_names(numbers).items():
            if name.label is not None and name.beside is None and name.detector == e.detector.name:
                low, high, images = (numbers[str(name.with_beside(each))] for each in (*BOUNDS, COUNTS[0]))
                found[name.label] = Estimate(numbers[text], low, high, int(images))
    return found


def _pictures(e: Evaluation, ledger: Ledger, a: Analyses, folder: Path) -> list[Path]:
    """Draw samples and figures of the measurements; returns the files."""
    made: list[Path] = []

    def path(name: str) -> Path:
        made.append(folder / name)
        return made[-1]

    model = e.model
    if model is not None and model.request.images:
        drawing = model.request.drawing(model.sha256).digest
        if save_samples(ledger.storage, drawing, model.request.images, folder / SAMPLES):
            made.append(folder / SAMPLES)
    near = nearest_of(ledger, e.parts)
    if near is not None:
        pairs_figure(near, e.detector.name, path(NEAREST_PAIRS))
    if distances := _class_distances(e, ledger):
        name = MetricName("class_kd", e.detector.name)
        figures.class_figure(e.by_name(distances), f"{name} of each class", path("distance_by_class.png"))
    if a.correlations:
        figures.difficulty_figure(a.correlations, path("difficulty.png"))
    if a.errors:
        figures.difficulty_scatter(a.errors, path("difficulty_scatter.png"))
        if a.by_class:
            figures.r_by_class(e.by_name(a.by_class), path("difficulty_by_class.png"))
        if a.calibrations:
            figures.calibrations_figure(a.calibrations, path("calibration.png"))
        assert model is not None
        assert model.data is not None
        images = HeldOut(Path(model.data))(model.evaluation.held_out_images).images[:MAP_IMAGES]
        figures.uncertainty_maps(images, a.maps, path(MAPS))
    if a.helps:
        figures.context_helps_figure(a.helps, path("context_helps.png"))
        figures.context_uncertainty_figure(a.uncertainty, path("context_uncertainty.png"))
    return made


def forget(e: Evaluation, ledger: Ledger, reason: str) -> None:
    """Forget all records of an evaluation, and its images, so that everything is measured again."""
    for part in e.parts:
        ledger.forget(part.digest, reason)
    if e.model is not None and e.model.request.images:
        request = e.model.request
        ledger.forget(request.drawn(e.model.sha256).digest, reason)
        drawing = request.drawing(e.model.sha256).digest
        for detector in (reader_of(e.detector, request.metrics), *e.further):
            for blocks in store_of(ledger, drawing, detector):
                blocks.clear()


def entry_of(e: Evaluation) -> SweepEntry:
    """An evaluation as a file in the storage: a sweep of one cell."""
    if e.model is not None:
        of_model = e.model.request.plain(), e.model.request.seed
        cell = CellEntry(e.name, e.identity, dict(e.about), *of_model, weights=e.model.sha256)
    else:
        cell = CellEntry(e.name, e.identity, dict(e.about), {}, digests=[part.digest for part in e.parts])
    return SweepEntry(EXPERIMENT, e.identity, [cell], command=this_command(), user=user())


def show(tracker: Tracker, e: Evaluation, outcome: Outcome, ledger: Ledger, say: Say) -> None:
    """Write an evaluation's file into the storage, and show it as an MLflow run, with a warning where the store
    refuses."""
    entry = entry_of(e)
    entry.write(ledger.storage)
    ledger.refresh()
    try:
        mirror = Mirror(tracker, ledger.storage, say)
        show_sweep(mirror.page(EXPERIMENT, {EXPERIMENT, e.identity}), entry, ledger, files=outcome.files)
        mirror.say_refused(say)
    except Exception as error:  # every kind of store raises its own
        say(f"warning: {tracker.shown} does not show it: {why(error)}; `pforce mirror` does, once it can")


def known(e: Evaluation, ledger: Ledger) -> bool:
    """Whether every part of an evaluation has a record."""
    return len(ledger.find(e.parts)) == len({part.digest for part in e.parts})


__all__ = ["RESULT", "Analyses", "Evaluation", "Outcome", "forget", "known", "run", "show"]
