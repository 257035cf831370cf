"""Carries out `pforce evaluate`: features of a model's or of given images, distances, analyses, and their record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from pforce.data import Batch
from pforce.evaluation import FeatureDrawer, FeatureJob, features_of, identity_of, samples_of
from pforce.files import strict, write_whole
from pforce.images import from_uint8, save_grid
from pforce.metrics.analyses import Analyses, Analysis, analyse
from pforce.metrics.detectors import Detector
from pforce.metrics.distances import Distances, ImageMetric, distances
from pforce.metrics.features import FeatureSet, read_features
from pforce.metrics.image_sets import ImageSet
from pforce.metrics.reference import BATCH, ReferenceStatistics
from pforce.orchestration.plan import provenance
from pforce.orchestration.sample import run_job
from pforce.results import difficulty_figures as figures
from pforce.sampling import count_flops
from pforce.sources import Source
from pforce.tracking import RunSpec, Tracker
from pforce.trial import choose_device

SHOWN_ONLY = ("source", "reference", "experiment")
"""Of a record: paths and names. Their contents are in it by hash."""
EXPERIMENT = "evaluations"
"""MLflow experiment of all evaluations."""
RESULT, SAMPLES, MAPS = "evaluation.json", "samples.png", "uncertainty_maps.png"


@dataclass(frozen=True)
class Evaluation:
    """What is measured, found and checked: nothing is looked up any more."""

    name: str
    """What the run is called."""
    detector: Detector
    metrics: tuple[ImageMetric, ...]
    extrapolate: bool
    reference: Callable[[torch.device, Callable[[int], None]], ReferenceStatistics]
    """Makes the reference, on a device; told the images that are done."""
    reference_images: int
    """Of them, for the progress bar."""
    record: Mapping[str, Any]
    """What determines the result, and is told with it: flat."""
    images: ImageSet | None = None
    """Given images; or a model:"""
    source: Source | None = None
    job: FeatureJob | None = None
    """What is drawn of it; None measures no images."""
    analyses: tuple[Analysis, ...] = ()
    held_out: Batch | None = None
    classes: tuple[str, ...] = ()
    seed: int = 0
    batch: int = BATCH

    @property
    def identity(self) -> str:
        """Fingerprint: of what determines the result, not of where it lies."""
        return identity_of({key: value for key, value in self.record.items() if key not in SHOWN_ONLY})


@dataclass
class Outcome:
    """What was found."""

    metrics: dict[str, float]
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


class _Bars:
    """A bar for each part on a terminal; elsewhere a line when it begins."""

    def __init__(self, console: Console) -> None:
        self.console, self.told = console, ""
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self.tasks: dict[str, Any] = {}

    def part(self, name: str, share: float) -> None:
        """Part `name` is `share` done."""
        if not self.console.is_terminal:
            if name != self.told:
                self.console.print(f"{name} …", highlight=False, markup=False)
            self.told = name
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=1.0)
        self.progress.update(self.tasks[name], completed=share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Bars are on the terminal during the block."""
        if not self.console.is_terminal:
            yield
            return
        with self.progress:
            yield


def run(e: Evaluation, folder: Path, console: Console, *, workers: int = 1, address: str | None = None) -> Outcome:
    """Measure, and leave pictures, figures and `evaluation.json` in the folder.

    A model's batches that are in the folder are not drawn again. KeyboardInterrupt on SIGINT and SIGTERM.
    """
    device = choose_device()
    bars = _Bars(console)
    metrics: dict[str, float] = {}
    notes: list[str] = []
    started = time.perf_counter()
    reference = None
    if e.job is not None or e.images is not None:
        with bars.shown():  # before anything is drawn: a broken reference is found first
            reference = _reference(e, device, bars)
    if e.job is not None:
        assert e.source is not None
        spent = run_job(e.job, folder, console, workers=workers, address=address, make=FeatureDrawer)
        schedule = e.job.sampler.schedule()
        metrics["cost/nfe"] = float(schedule.num_function_evaluations)
        metrics["cost/flops_per_image"] = float(count_flops(e.source.model.config, e.job.sampler))
        if spent.images:
            metrics["cost/forward_passes"] = float(spent.forward_passes)
            metrics["cost/sampling_seconds_per_image"] = spent.seconds_per_image
    bars = _Bars(console)
    with bars.shown():
        if reference is not None:
            found = _distances(e, reference, folder, device, bars)
            metrics |= found.metrics
            notes += found.notes
        analyses = _analyse(e, device, bars)
    metrics |= analyses.metrics
    metrics["cost/evaluation_seconds"] = time.perf_counter() - started
    files = _pictures(e, analyses, folder)
    outcome = Outcome(metrics, notes, [*files, folder / RESULT])
    record = {
        "fingerprint": e.identity,
        "record": dict(e.record),
        "metrics": metrics,
        "notes": notes,
        "curves": curves(analyses),
    }
    text = json.dumps(strict(record), indent=1, allow_nan=False)
    write_whole(folder / RESULT, lambda scratch: _write(scratch, text))
    return outcome


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _reference(e: Evaluation, device: torch.device, bars: _Bars) -> ReferenceStatistics:
    def told(done: int) -> None:
        bars.part("features of the reference", min(1.0, done / max(1, e.reference_images)))

    return e.reference(device, told)


def _distances(
    e: Evaluation, reference: ReferenceStatistics, folder: Path, device: torch.device, bars: _Bars
) -> Distances:
    detector = e.detector.to(device)
    generated: FeatureSet
    if e.job is not None:
        generated = features_of(folder, e.job, detector)
    else:
        assert e.images is not None
        count = len(e.images)
        generated = read_features(
            detector,
            e.images.batches(BATCH),
            size=min(BATCH, count),
            device=device,
            progress=lambda done: bars.part("features of the images", done / count),
        )
    bars.part("distances and their intervals", 0.0)
    found = distances(generated, reference, e.metrics, extrapolate=e.extrapolate)
    bars.part("distances and their intervals", 1.0)
    return found


def _analyse(e: Evaluation, device: torch.device, bars: _Bars) -> Analyses:
    if not e.analyses:
        return Analyses()
    assert e.source is not None
    assert e.held_out is not None
    return analyse(
        e.source.model.to(device),
        e.held_out.images,
        e.held_out.labels,
        what=e.analyses,
        seed=e.seed,
        batch=e.batch,
        device=device,
        progress=bars.part,
    )


def curves(a: Analyses) -> dict[str, Any]:
    """Everything that figures show, as plain data."""
    return {
        "difficulty": [r._asdict() for r in a.correlations],
        "difficulty_by_class": {str(label): r._asdict() for label, r in a.by_class.items()},
        "context_helps": [{name: _plain(value) for name, value in c._asdict().items()} for c in a.helps],
        "context_uncertainty": [
            {"t": u.t, "context_time": u.context_time, "difference": u.difference._asdict(), "images": u.images,
             "alone_mean": float(u.alone.mean()), "with_context_mean": float(u.with_context.mean())}
            for u in a.uncertainty
        ],
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _pictures(e: Evaluation, a: Analyses, folder: Path) -> list[Path]:
    """Samples and figures of what was measured."""
    made: list[Path] = []

    def path(name: str) -> Path:
        made.append(folder / name)
        return made[-1]

    if e.job is not None:
        _grid(samples_of(folder, e.job), path(SAMPLES))
    if a.correlations:
        figures.difficulty_figure(a.correlations, path("difficulty.png"))
        figures.difficulty_scatter(a.errors, path("difficulty_scatter.png"))
        named = {(e.classes[label] if e.classes else f"class {label}"): r for label, r in sorted(a.by_class.items())}
        if named:
            figures.class_figure(named, path("difficulty_by_class.png"))
        if a.calibrations:
            figures.calibrations_figure(a.calibrations, path("calibration.png"))
        assert e.held_out is not None
        shown = len(next(iter(a.maps.values())))
        figures.uncertainty_maps(e.held_out.images[:shown], a.maps, path(MAPS))
    if a.helps:
        figures.context_helps_figure(a.helps, path("context_helps.png"))
        figures.context_uncertainty_figure(a.uncertainty, path("context_uncertainty.png"))
    return made


def _grid(images: Tensor, path: Path) -> None:
    save_grid(from_uint8(images), path, scale=max(1, 64 // images.shape[-1]))


def record_run(tracker: Tracker, e: Evaluation, outcome: Outcome) -> str:
    """The evaluation as an MLflow run; returns its id."""
    tags = provenance()
    sweep = tracker.open_sweep(EXPERIMENT, EXPERIMENT, tags)
    run_id = tracker.open_trial(sweep, RunSpec(e.name, e.identity, e.record, tags))
    tracker.log(run_id, outcome.metrics)
    if outcome.notes:
        tracker.tag(run_id, {"notes": "; ".join(outcome.notes)})
    for path in outcome.files:
        tracker.artifact(run_id, path)
    tracker.close(run_id, "FINISHED")
    tracker.close(sweep.run_id, "FINISHED")
    return run_id


def recorded(tracker: Tracker, e: Evaluation, folder: Path) -> Outcome | None:
    """What an earlier call found, where it is recorded; None where it is not."""
    there = tracker.finished([e.identity]).get(e.identity)
    if there is None or not (folder / RESULT).exists():
        return None
    found = json.loads((folder / RESULT).read_text())
    if found["fingerprint"] != e.identity:  # a folder of the user's, which another evaluation has used since
        return None
    files = sorted(folder.glob("*.png"))
    metrics = {name: math.nan if value is None else value for name, value in found["metrics"].items()}
    return Outcome(metrics, found["notes"], [*files, folder / RESULT])
