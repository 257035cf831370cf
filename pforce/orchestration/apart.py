"""Evaluations of a sweep apart from its trainings: on workers of their own, after the trainings have ended.

For many images. A trial that waited for tasks while it held its own processors could wait for ever on a full cluster;
here nothing is held while anything is waited for: trials have given back what they held, and the driver holds nothing.
All cells share the workers, image by image, so the last cell is as quick as the first. Finished batches are files: an
evaluation that was stopped goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from pforce.config import from_dict
from pforce.data import Batch, Manifest, read_split
from pforce.evaluation import FeatureDrawer, FeatureJob, features_of, samples_of
from pforce.generation import Drawn, claim, missing, recorded_batch, save_batch
from pforce.images import from_uint8
from pforce.metrics.distances import distances
from pforce.metrics.evaluate import HeldOut, TrialEvaluation, UncertaintyMaps, classes_of, measure_held_out
from pforce.mirror import CHECKPOINTS
from pforce.orchestration.failures import failure_of
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.measurer import Failed
from pforce.orchestration.placement import Placement
from pforce.orchestration.plan import Plan, payload, trial_folder
from pforce.orchestration.pool import Pool, drain, make_pool
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.sweep import Work
from pforce.orchestration.worker import Payload, find_data, paths_of
from pforce.references import reference_for
from pforce.sampling import count_flops
from pforce.sources import EVALUATIONS, load_source
from pforce.trial import RESULT, evaluation_folder, leave_evaluation
from pforce.validation import ConfigError

FEATURES = "features"
"""Folder of an evaluation's batches, in the evaluation's own."""
HELD_OUT = -1
"""In place of a batch's number: loss and difficulty on held-out images."""


class Task(NamedTuple):
    """A batch of a cell, or its held-out images."""

    cell: int
    number: int


@dataclass(frozen=True)
class Cell:
    """A trained cell as workers get it."""

    payload: Payload
    job: FeatureJob


class Apart:
    """Draws batches and measures held-out images of any cell; keeps the model of the last one."""

    def __init__(self, cells: tuple[Cell, ...], device: torch.device) -> None:
        self.cells, self.device = cells, device
        self.loaded: tuple[int, FeatureDrawer] | None = None

    def __call__(self, task: Task) -> Drawn | HeldOut | Failed:
        try:
            cell = self.cells[task.cell]
            if self.loaded is None or self.loaded[0] != task.cell:
                self.loaded = (task.cell, FeatureDrawer(_job_here(cell), self.device))
            drawer = self.loaded[1]
            return self._held_out(cell, drawer) if task.number == HELD_OUT else drawer(task.number)
        except Exception as error:  # told with its reason; the sweep goes on with the other cells
            if isinstance(error, torch.AcceleratorError):
                raise  # the process's CUDA state is broken: it ends, and another one takes the task
            return Failed(*failure_of(error))

    def _held_out(self, cell: Cell, drawer: FeatureDrawer) -> HeldOut:
        started = time.perf_counter()
        experiment = from_dict(cell.payload["experiment"])
        images = _held_out(find_data(experiment, cell.payload), experiment.evaluation.validation_images)
        found = measure_held_out(
            drawer.draw.model, experiment.evaluation, images.images, images.labels, device=self.device
        )
        seconds = {"cost/evaluation_seconds": time.perf_counter() - started}
        return found._replace(metrics={**found.metrics, **seconds})


def _job_here(cell: Cell) -> FeatureJob:
    """The job with its checkpoint as this machine has it: out of a bucket it is pulled into this machine's mirror."""
    paths = paths_of(cell.payload, Path(cell.payload["data"]))
    if paths.mirror is None:
        return cell.job
    paths.mirror.fetch()
    return replace(cell.job, source=str(paths.folder / CHECKPOINTS / Path(cell.job.source).name))


def _held_out(folder: Path, wanted: int) -> Batch:
    return read_split(folder, "validation", limit=min(wanted, Manifest.load(folder).validation.samples))


@dataclass
class _State:
    """What is known of a cell under way."""

    item: Work
    cell: Cell
    folder: Path
    held_out: Batch
    left: int
    """Tasks."""
    metrics: dict[str, float]
    drawing: float = 0.0
    """Seconds of workers that drew and read images."""
    seconds: float = 0.0
    """All seconds of workers."""
    passes: int = 0
    drawn: int = 0
    failed: bool = False
    maps: UncertaintyMaps | None = None


def evaluate(plan: Plan, recorder: Recorder, console: Console) -> None:
    """Evaluate every cell that is trained and not evaluated, and report each as done or failed."""
    states = []
    for item in plan.work:
        if item.fingerprint in recorder.trained:
            try:
                states.append(_begin(plan, recorder, item))
            except Exception as error:  # this cell's files; the others are evaluated
                _failed(recorder, item, error)
    if not states:
        return
    tasks = iter([task for number, state in enumerate(states) for task in _tasks(number, state)])
    workers = plan.options.evaluation_workers
    console.print(
        f"{len(states)} cells to evaluate apart, on {workers} worker(s): "
        f"{sum(state.cell.job.count for state in states):,} images",
        highlight=False,
    )
    for state in states:
        state.left = len(_tasks(0, state))
    pool = _pool(plan, tuple(state.cell for state in states), console)
    limit = plan.options.max_hours

    def ask() -> Task | None:
        if limit is not None and time.monotonic() - recorder.started > limit * 3600:
            return None  # what is under way ends; the rest goes on with the next call
        return next((task for task in tasks if not states[task.cell].failed), None)

    # A device is a GPU where there are any, else a core.
    recorder.evaluation_devices = 1 if torch.cuda.is_available() else getattr(pool, "threads", torch.get_num_threads())
    with stop_on_signals(restore=False), pool:
        for task, result in drain(pool, ask):
            _take(plan, recorder, states[task.cell], result)


def _pool(plan: Plan, cells: tuple[Cell, ...], console: Console) -> Pool[Task, Drawn | HeldOut | Failed]:
    """As many workers as were asked for, or all that fit: hours of training are not thrown away for fewer."""
    options = plan.options
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    try:
        return make_pool(options.evaluation_workers, address, Apart, cells)
    except ConfigError as error:
        console.print(f"warning: {error}; evaluating on all that there is", highlight=False, markup=False)
        return make_pool(None, address, Apart, cells)


def _failed(recorder: Recorder, item: Work, error: Exception) -> None:
    failure = failure_of(error)
    recorder.report(item, {"phase": "failed", "reason": failure.reason, "error": failure.message})


def _begin(plan: Plan, recorder: Recorder, item: Work) -> _State:
    experiment = item.experiment
    training = trial_folder(plan.options, item)
    folder = evaluation_folder(training, item.fingerprint)
    cell_payload = payload(plan, item, Placement(1, 1, 0.0))  # the pool places workers
    mirror = paths_of(cell_payload, plan.data).mirror
    if mirror is not None:
        mirror.fetch()
    source = load_source(training)
    held_out = _held_out(plan.data, experiment.evaluation.validation_images)
    config = experiment.evaluation
    job = FeatureJob(
        source=str(source.path), sha256=source.sha256, sampler=experiment.sampler,
        classes=tuple(classes_of(held_out.labels, config.images).tolist()), count=config.images, seed=config.seed,
        batch=recorded_batch(folder / FEATURES) or min(config.batch, config.images), detector=config.detector,
        detector_weights=None if config.detector_weights is None else str(Path(config.detector_weights).absolute()),
        detector_sha256=plan.inputs["detector"],
    )  # fmt: skip
    claim(folder / FEATURES, job)
    cell = Cell(cell_payload, job)
    metrics = dict(recorder.trained[item.fingerprint]["metrics"])
    metrics["data/damaged_samples"] += held_out.damaged
    return _State(item, cell, folder, held_out, 0, metrics)


def _tasks(number: int, state: _State) -> list[Task]:
    batches: Iterator[int] = iter(missing(state.folder / FEATURES, state.cell.job))
    return [*(Task(number, batch) for batch in batches), Task(number, HELD_OUT)]


def _take(plan: Plan, recorder: Recorder, state: _State, result: Drawn | HeldOut | Failed) -> None:
    state.left -= 1
    if state.failed:
        return
    if isinstance(result, Failed):
        state.failed = True
        recorder.report(state.item, {"phase": "failed", "reason": result.reason, "error": result.error})
        return
    if isinstance(result, Drawn):
        save_batch(state.folder / FEATURES, state.cell.job, result)
        state.seconds += result.seconds
        state.drawing += result.seconds
        state.passes = result.forward_passes
        state.drawn += min(state.cell.job.batch, state.cell.job.count - result.number * state.cell.job.batch)
        share = 1 - state.left / (state.cell.job.batches + 1)
        recorder.report(state.item, {"phase": "sampling", "share": share})
    else:
        state.seconds += result.metrics.pop("cost/evaluation_seconds")
        state.metrics |= result.metrics
        state.maps = result.maps
    if not state.left:
        try:
            _finish(plan, recorder, state)
        except Exception as error:  # distances that cannot be computed fail this cell, not the sweep
            _failed(recorder, state.item, error)


def _finish(plan: Plan, recorder: Recorder, state: _State) -> None:
    """All of a cell's results are there: its distances, its files, and its record."""
    started = time.perf_counter()
    experiment, job = state.item.experiment, state.cell.job
    config, cpu = experiment.evaluation, torch.device("cpu")
    detector = config.load_detector()
    paths = paths_of(state.cell.payload, plan.data)
    reference = reference_for(config, plan.data, detector, held_out=state.held_out, cache=paths.references, device=cpu)
    found = distances(
        features_of(state.folder / FEATURES, job, detector), reference, config.metrics, extrapolate=config.extrapolate
    )
    trained = recorder.trained[state.item.fingerprint]
    seconds = state.seconds + time.perf_counter() - started
    metrics = {
        **state.metrics,
        **found.metrics,
        "cost/nfe": float(job.sampler.schedule().num_function_evaluations),
        "cost/flops_per_image": float(count_flops(experiment.model, job.sampler)),
        "cost/evaluation_seconds": seconds,
        "cost/seconds": state.metrics["cost/training_seconds"] + seconds,
        "cost/device_hours": state.metrics["cost/device_hours"] + seconds * recorder.evaluation_devices / 3600,
    }
    if state.drawn:
        metrics["cost/forward_passes"] = float(state.passes)
        metrics["cost/sampling_seconds_per_image"] = state.drawing / state.drawn
    samples = from_uint8(samples_of(state.folder / FEATURES, job))
    leave_evaluation(state.folder, TrialEvaluation(metrics, samples, maps=state.maps), state.item.fingerprint, metrics)
    if paths.mirror is not None:  # batches stay here: an evaluation that was stopped goes on on this machine only
        paths.mirror.finish(f"{EVALUATIONS}/{state.item.fingerprint}", last=RESULT, skip=(FEATURES,))
    for note in found.notes:
        recorder.report(state.item, {"phase": "warning", "message": note})
    recorder.report(
        state.item,
        {"phase": "done", "metrics": metrics, "environment": {**trained["environment"], "evaluated": "apart"}},
    )
