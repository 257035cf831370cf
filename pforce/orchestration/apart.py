"""Evaluations of a sweep apart from its trainings: on workers of their own, after the trainings have ended.

For many images. A trial that waited for tasks while it held its own processors could wait for ever on a full cluster;
here nothing is held while anything is waited for: trials have given back what they held, and the driver holds nothing.
All cells share the workers, block by block, so the last cell is as quick as the first. What is drawn is kept in the
storage: an evaluation that was stopped goes on.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from pforce.executors.placement import Placement
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.measuring import Done, Failed, Measurable, Measurer, Shared, Task
from pforce.orchestration.plan import Plan, payload, trial_folder
from pforce.orchestration.pool import Pool, drain, make_pool
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.sweep import Work
from pforce.orchestration.worker import paths_of
from pforce.records.row import tensors_of
from pforce.training.checkpoint import snapshot_path
from pforce.trial.failures import failure_of
from pforce.trial.folder import evaluation_folder, training_folder, write_experiment
from pforce.trial.measure import measure
from pforce.trial.reference import HeldOut, reference_images
from pforce.trial.run import finish_trial
from pforce.trial.source import SourceError, load_source
from pforce.validation import ConfigError


@dataclass
class _Cell:
    """A trained cell whose evaluation is under way."""

    item: Work
    model: Measurable
    failed: bool = False


def evaluate(plan: Plan, recorder: Recorder, console: Console) -> None:
    """Evaluate every cell that is trained and not evaluated, and report each as done or failed."""
    cells: list[_Cell] = []
    for item in plan.work:
        if item.fingerprint in recorder.trained:
            try:
                cells.append(_Cell(item, _measurable(plan, item)))
            except Exception as error:  # this cell's files; the others are evaluated
                _failed(recorder, item, error)
    if not cells:
        return
    plan.ledger.refresh()
    shared = Shared([cell.model for cell in cells], plan.ledger)
    waiting = shared.tasks(held_out=True)
    tasks = iter(waiting)
    console.print(
        f"{len(cells)} cells to evaluate apart, on {plan.options.evaluation_workers} worker(s): "
        f"{sum(cell.model.request.images for cell in cells):,} images",
        highlight=False,
    )
    all_tasks = {number: left + 1 for number, left in shared.left.items()}
    finished: set[int] = set()
    for number, cell in enumerate(cells):
        if not shared.left[number]:  # a killed driver's: only its distances were missing
            _finish(plan, recorder, shared, number, cell)
    pool = _pool(plan, tuple(cell.model for cell in cells), console)
    limit = plan.options.max_hours

    def ask() -> Task | None:
        if limit is not None and time.monotonic() - recorder.started > limit * 3600:
            return None  # what is under way ends; the rest goes on with the next call
        return next((task for task in tasks if not all(cells[each].failed for each in shared.concerned(task))), None)

    with stop_on_signals(restore=False), pool:
        for task, result in drain(pool, ask):
            concerned = [number for number in shared.concerned(task) if not cells[number].failed]
            if isinstance(result, Failed):
                told = {"phase": "failed", "reason": result.reason, "error": result.error}
                for number in concerned:
                    cells[number].failed = True
                    recorder.report(cells[number].item, told)
                continue
            whole = shared.take(task, result)
            for number in concerned:
                share = 1 - shared.left[number] / all_tasks[number]
                recorder.report(cells[number].item, {"phase": "sampling", "share": share})
            for number in (number for number in concerned if number in whole):
                finished.add(number)
                _finish(plan, recorder, shared, number, cells[number], trim=shared.last(number, finished))


def _measurable(plan: Plan, item: Work) -> Measurable:
    experiment, folder = item.experiment, trial_folder(plan.options, item)
    cell_payload = payload(plan, item, Placement(1, 1, 0.0))  # the pool places workers
    paths = paths_of(cell_payload, plan.data)
    mirror = paths.mirror(item.parts)
    if mirror is not None:
        mirror.fetch(item.parts.images_seen)
    write_experiment(evaluation_folder(folder, item.fingerprint), experiment)
    source = load_source(snapshot_path(folder, item.parts.images_seen))
    known = tensors_of(item.parts, plan.ledger)
    if known is not None and source.sha256 != known[0]:
        raise SourceError(
            f"{source.path} holds other weights ({source.sha256[:12]}) than were trained ({known[0][:12]}): it is "
            "damaged; the same command makes it again"
        )
    config = experiment.evaluation
    return Measurable(
        source=str(source.path), sha256=source.sha256, request=item.parts.request, evaluation=config,
        sampler=experiment.sampler, storage=plan.options.place.uri,
        reference=reference_images(config, plan.data, plan.inputs, experiment.data.resolution), data=str(plan.data),
        detector=config.detector, detector_weights=config.detector_weights,
        training=training_folder(item.training), provenance=cell_payload["provenance"],
    )  # fmt: skip


def _pool(plan: Plan, models: tuple[Measurable, ...], console: Console) -> Pool[Task, Done | Failed]:
    """As many workers as were asked for, or all that fit: hours of training are not thrown away for fewer."""
    options = plan.options
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    try:
        return make_pool(options.evaluation_workers, address, Measurer, models)
    except ConfigError as error:
        console.print(f"warning: {error}; evaluating on all that there is", highlight=False, markup=False)
        return make_pool(None, address, Measurer, models)


def _failed(recorder: Recorder, item: Work, error: Exception) -> None:
    failure = failure_of(error)
    recorder.report(item, {"phase": "failed", "reason": failure.reason, "error": failure.message})


def _finish(
    plan: Plan, recorder: Recorder, shared: Shared, number: int, cell: _Cell, *, trim: bool = True
) -> None:  # fmt: skip
    """All of a cell's images and held-out measurements are there: its distances, its pictures, and its row.

    Args:
        trim: remove features beyond what is kept of a drawing: nobody else waits for them.
    """
    item, model = cell.item, cell.model
    try:
        paths = paths_of(payload(plan, item, Placement(1, 1, 0.0)), plan.data)
        subject = model.subject(torch.device("cpu"))
        plan.ledger.refresh()
        shared.record(number, subject)
        measure(item.parts.request, subject, plan.ledger, trim=trim)
        row = finish_trial(item.experiment, paths, item.parts, plan.ledger, HeldOut(plan.data), said=False)
    except Exception as error:  # what cannot be measured fails this cell, not the sweep
        _failed(recorder, item, error)
        return
    for note in row.notes:
        recorder.report(item, {"phase": "warning", "message": note})
    trained: dict[str, Any] = recorder.trained[item.fingerprint]
    recorder.report(
        item, {"phase": "done", "metrics": row.metrics, "environment": {**trained["environment"], "evaluated": "apart"}}
    )
