"""A cell from end to end: trains a model, measures it and records both. The same in every executor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pforce import data
from pforce.base.files import write_whole
from pforce.config import Experiment
from pforce.metrics.detectors import Detector
from pforce.metrics.held_out import MAP_IMAGES, shown_timesteps
from pforce.metrics.reference import ReferenceStatistics
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, Inputs, Request, cell_parts
from pforce.records.row import TENSORS, Row, row_of
from pforce.trial.draw import save_samples
from pforce.trial.folder import (
    EVALUATIONS,
    MAPS,
    SAMPLES,
    evaluation_folder,
    write_experiment,
)
from pforce.trial.held_out import arrays_of
from pforce.trial.measure import measure
from pforce.trial.reference import HeldOut, check_detector, inputs_of, reference_for, training_images
from pforce.trial.subject import Subject, cycle_of
from pforce.trial.train import Trained, train_trial
from pforce.trial.where import Paths, Where, with_precision


def _same(detector: Detector) -> Detector:
    return detector


def subject_of(
    experiment: Experiment,
    paths: Paths,
    inputs: Inputs,
    trained: Trained,
    where: Where,
    *,
    images: HeldOut,
    detector: Detector,
    further: Sequence[Detector] = (),
) -> Subject:
    """A trained model with everything that its experiment's evaluation needs."""
    config = experiment.evaluation

    def reference_in(features: Detector) -> ReferenceStatistics:
        return reference_for(config, paths.data, features, inputs, cache=paths.references, device=where.device)

    return Subject(
        model=trained.model,
        weights=trained.weights,
        device=where.device,
        sampler=experiment.sampler,
        labels=lambda: cycle_of(config, images, experiment.model.classes),
        detector=lambda: detector,
        reference=lambda: reference_in(detector),
        further=[(partial(_same, other), partial(reference_in, other)) for other in further],
        training=lambda: training_images(
            paths.data, config.held_out_images, detector, paths.references, device=where.device
        ),
        held_out=lambda: images(config.held_out_images),
        batch=config.batch,
        devices=where.devices,
        provenance=where.record(experiment),
    )


def run_trial(
    experiment: Experiment, paths: Paths, where: Where, *, inputs: Inputs | None = None, request: Request | None = None
) -> Row | None:  # fmt: skip
    """Train, and measure the missing parts; waits for parts that another process makes. Errors as in `train_trial`.

    Returns the row on the first worker; the others get None. Notes on measurements are given as warnings.

    Args:
        inputs: inputs of the experiment, by content; by default they are looked up.
        request: measurements in place of those of the experiment's evaluation.
    """
    workers = where.workers
    manifest = data.Manifest.load(paths.data)
    # The evaluation's inputs are read first, so that a missing file is found before hours of training, not after.
    detector = experiment.evaluation.load_detector().to(where.device)
    inputs = inputs or inputs_of(experiment.evaluation, manifest, detector)
    experiment = with_precision(experiment, inputs)
    cell = cell_parts(experiment, inputs)
    cell = cell if request is None else replace(cell, request=request)
    check_detector(detector, cell.request.detector)
    further = [each.to(where.device) for each in experiment.evaluation.load_further()]
    for other, planned in zip(further, cell.request.further, strict=True):
        check_detector(other, planned)
    held_out = HeldOut(paths.data)
    held_out(experiment.evaluation.held_out_images)
    ledger = Ledger(paths.storage, lambda line: warnings.warn(line, stacklevel=2))
    if workers.first:
        write_experiment(evaluation_folder(paths.folder(cell), cell.digest), experiment)
    trained = train_trial(experiment, paths, cell, where, ledger)
    trained.weights = workers.first_does(lambda: trained.weights)
    subject = subject_of(
        experiment, paths, inputs, trained, where, images=held_out, detector=detector, further=further
    )  # fmt: skip
    measure(cell.request, subject, ledger, workers=workers, watch=where.watch)
    return finish_trial(experiment, paths, cell, ledger, held_out) if workers.first else None


def finish_trial(
    experiment: Experiment, paths: Paths, cell: CellParts, ledger: Ledger, held_out: HeldOut, *, said: bool = True
) -> Row:
    """Return the row of a cell whose parts are all there, and write the pictures of its folder.

    Args:
        said: give notes on measurements as warnings.
    """
    row = row_of(cell, ledger)
    assert row is not None  # all of it was just measured
    for note in row.notes if said else ():
        warnings.warn(note, stacklevel=2)
    folder = evaluation_folder(paths.folder(cell), cell.digest)
    try:
        leave_pictures(experiment, folder, cell, ledger, weights=str(row.weights.values[TENSORS]), held_out=held_out)
    except OSError as error:  # a full disk, a folder in the way: the numbers are recorded
        warnings.warn(f"pictures in {folder} are not written: {error}", stacklevel=2)
    mirror = paths.mirror(cell)
    if mirror is not None:
        mirror.finish(cell.images_seen, f"{EVALUATIONS}/{folder.name}")
    return row


def leave_pictures(
    experiment: Experiment, folder: Path, cell: CellParts, ledger: Ledger, *, weights: str, held_out: HeldOut
) -> None:
    """Write samples and maps of uncertainty into an evaluation's folder, as far as the storage keeps them."""
    drawing = cell.request.drawing(weights).digest
    save_samples(ledger.storage, drawing, cell.request.images, folder / SAMPLES)
    maps, times = [], []
    shown = {f"{time:.2f}" for time in shown_timesteps(experiment.evaluation.difficulty_timesteps)}
    for (analysis, time_key), part in cell.request.held_out_parts(weights).items():
        record = ledger.get(part) if analysis == "difficulty" and time_key in shown else None
        arrays = arrays_of(ledger, record) if record else None
        if arrays is not None:
            maps.append(arrays["maps"])
            times.append(float(time_key))
    if maps:
        images = held_out(experiment.evaluation.held_out_images).images[:MAP_IMAGES]
        named = {"images": images.numpy(), "timesteps": np.array(times), "sigma": np.stack(maps)}

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                np.savez(file, **named)  # type: ignore[arg-type]  # the stubs know no names

        write_whole(folder / MAPS, write)
