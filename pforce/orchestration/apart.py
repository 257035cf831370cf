"""Separate measurements of a sweep: on workers of their own, after the trainings have ended.

For many images. A training that waited for other workers while it held its own could wait for ever on a full cluster;
here nothing is held while waiting. All cells share the workers, block by block, so the last cell is as fast as the
first. Drawn images are kept in the storage, so that an evaluation that was stopped can be resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch

from pforce.base.errors import ConfigError
from pforce.base.words import counted
from pforce.executors.executor import Workforce
from pforce.orchestration.drive import Exit, RetryPolicy, Source, drive
from pforce.orchestration.options import SCRATCH
from pforce.orchestration.plan import Plan, trial_folder
from pforce.orchestration.recorder import TRAINING_SHARE, Recorder
from pforce.orchestration.shared import Shared, Wanted
from pforce.orchestration.sweep import Work
from pforce.orchestration.trials import note_of
from pforce.records import provenance
from pforce.records.row import tensors_of
from pforce.training.checkpoint import snapshot_path
from pforce.trial.failures import Failure, failure_of
from pforce.trial.folder import evaluation_folder, training_folder, write_experiment
from pforce.trial.measurable import Measurable
from pforce.trial.measure import measure
from pforce.trial.reference import HeldOut, reference_images
from pforce.trial.run import finish_trial
from pforce.trial.source import SourceError, load_source
from pforce.trial.task import Done, Failed, Idle, Measure, Task
from pforce.trial.where import Paths


def measurable(plan: Plan, item: Work) -> Measurable:
    """A trained cell's model, as workers load it."""
    experiment, folder = item.experiment, trial_folder(plan.options, item)
    mirror = Paths(plan.data, plan.options.place).mirror(item.parts)
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
        training=training_folder(item.training), provenance=provenance.code(),
    )  # fmt: skip


class Measurements(Source):
    """The source of tasks that draw and measure trained cells.

    Args:
        trained: digest of a cell → result of its training.
    """

    def __init__(self, plan: Plan, recorder: Recorder, trained: dict[str, Done]) -> None:
        self.plan, self.recorder, self.trained = plan, recorder, trained
        self.items: list[Work] = []
        wanted: list[Wanted] = []
        for item in plan.work:
            if item.fingerprint in trained:
                try:
                    wanted.append(Wanted(item.fingerprint, item.label, measurable(plan, item)))
                    self.items.append(item)
                except Exception as error:  # an error of this cell's files; the others are measured
                    self._fail(item, failure_of(error))
        self.failures: set[int] = set()
        self.finished: set[int] = set()
        plan.ledger.refresh()
        self.shared = Shared(wanted, plan.ledger)
        self.tasks = self.shared.tasks(held_out=True)
        self.waiting = iter(self.tasks)
        self.all = {number: len(left) + 1 for number, left in self.shared.left.items()}
        for number in range(len(self.items)):
            if not self.shared.left[number]:  # from a killed driver: only its distances are missing
                self._finish(number)

    @property
    def images(self) -> int:
        """Images of all cells."""
        return sum(each.model.request.images for each in self.shared.wanted)

    def next(self) -> Task | Idle:
        for task in self.waiting:
            if not self.failures.issuperset(self.shared.sharers[task.id]):
                return task
        return Idle.END

    def done(self, task: Task, event: Done) -> None:
        assert isinstance(task, Measure)
        whole = self.shared.take(task, event)
        for number in self.shared.sharers[task.id]:
            if number in self.failures:
                continue
            share = 1 - len(self.shared.left[number]) / self.all[number]
            label = self.items[number].label
            self.recorder.display.update(label, TRAINING_SHARE + (1 - TRAINING_SHARE) * share, "sampling")
            if number in whole:
                self._finish(number)

    def failed(self, task: Task, event: Failed) -> None:
        assert isinstance(task, Measure)
        self.shared.drop(task)
        self.failures |= {*self.shared.sharers[task.id]}

    def _fail(self, item: Work, failure: Failure) -> None:
        self.recorder.fail_cell(item.fingerprint, *failure)
        self.recorder.display.end(item.label, f"FAILED ({failure.reason}): {failure.message}")

    def _finish(self, number: int) -> None:
        """Finish a cell whose images and held-out measurements are all there: its distances, its pictures, and its
        row."""
        item, model, plan = self.items[number], self.shared.wanted[number].model, self.plan
        self.finished.add(number)
        # Features beyond those kept per drawing are removed, unless another cell waits for them.
        trim = self.shared.last(number, self.finished)
        try:
            subject = model.subject(torch.device("cpu"))
            plan.ledger.refresh()
            self.shared.record(number, lambda: subject)
            measure(item.parts.request, subject, plan.ledger, trim=trim)
            paths = Paths(plan.data, plan.options.place)
            row = finish_trial(item.experiment, paths, item.parts, plan.ledger, HeldOut(plan.data), said=False)
        except Exception as error:  # an error fails this cell, not the sweep
            self.failures.add(number)
            self._fail(item, failure_of(error))
            return
        for note in row.notes:
            self.recorder.warn_of(item.fingerprint, item.label, note)
        environment = {**self.trained[item.fingerprint].environment, "evaluated": "apart"}
        self.recorder.finish(item.fingerprint, item.label, note_of(item, row.metrics), environment)


def workforce_of(plan: Plan) -> Workforce:
    """The workforce of separate measurements: each runs in one process, so not in groups of workers."""
    options = plan.options
    executor = None if options.executor == "groups" else options.executor
    cluster = os.environ.get("RAY_ADDRESS") if executor is None else None
    return Workforce(executor, options.evaluation_workers, options.ray_address or cluster, options.gpu_type)


def evaluate(
    plan: Plan, recorder: Recorder, trained: dict[str, Done], say: Callable[[str], None], deadline: float | None
) -> Exit:
    """Measure all trained cells, and record each as finished or failed."""
    source = Measurements(plan, recorder, trained)
    if not source.tasks:
        return Exit()
    say(
        f"{counted(len(source.items), 'cell')} to evaluate separately, on "
        f"{counted(plan.options.evaluation_workers or 1, 'worker')}: {counted(source.images, 'image')}"
    )
    workforce, name, scratch = workforce_of(plan), f"{plan.sweep.name}-apart", plan.options.root / SCRATCH
    with ExitStack() as stack:
        try:
            executor = stack.enter_context(workforce.make(name, scratch, say=say))
        except ConfigError as error:  # hours of training are not thrown away for a lack of workers
            say(f"warning: {error}; evaluating on as many workers as fit")
            executor = stack.enter_context(replace(workforce, workers=None).make(name, scratch, say=say))
        return drive(executor, source, recorder, retry=RetryPolicy(plan.options.retries), deadline=deadline)
