"""Input and output of a sampler sweep: its model from the user's choice, and its table, files and figure at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from pforce import catalog
from pforce.base.errors import ConfigError
from pforce.base.files import write_bytes, write_text
from pforce.base.words import counted
from pforce.config import Experiment
from pforce.data import Manifest, ensure
from pforce.orchestration.plan import this_command
from pforce.orchestration.sampler_search import Outcome
from pforce.orchestration.sampler_sweep import SamplerSweep
from pforce.records.parts import request_of
from pforce.results import Report
from pforce.results.page import Section, png
from pforce.results.pareto import front_figure
from pforce.results.sweep_run import Summary
from pforce.storage import Storage
from pforce.trial.measurable import Measurable
from pforce.trial.reference import check_reference, inputs_of, reference_images
from pforce.trial.source import Source

MEASURED_TO_TELL = 5
"""Measurements per worker from which on their fixed cost is reported."""


def make_subject(
    source: Source, storage: Storage, *, data: str | None, images: int, reference: int, seed: int
) -> Measurable:
    """The model of a search. ConfigError where its data set is unknown or does not fit.

    Args:
        storage: storage of drawings and records.
        data: experiment whose data and evaluation are used; by default, the one that trained the model.
        images: number of generated images per sampler.
        reference: number of held-out images that they are compared with, and whose classes they take.
        seed: seed of the noise that all samplers share.
    """
    experiment: Experiment | None = catalog.experiment(data) if data else source.experiment
    if experiment is None:
        raise ConfigError(
            f"{source.path}: the file does not say what it was trained on; name an experiment with --data, such as "
            "openmoji32_micro, whose held-out images are the reference"
        )
    if not data and source.kind == "model file" and ":" in experiment.evaluation.detector:
        raise ConfigError(
            f"{source.path}: its detector {experiment.evaluation.detector} is code, which a model's file does not get "
            "to run; name an experiment with --data"
        )
    folder = ensure(experiment.data, path_from=None if data else source.path).absolute()
    manifest = Manifest.load(folder)
    detector = experiment.evaluation.load_detector()
    check_reference(experiment.evaluation, detector)
    config = source.model.config
    wanted = (len(manifest.classes), manifest.channels, (manifest.resolution,) * 2)
    if (config.classes, config.channels, config.image_size) != wanted:
        raise ConfigError(
            f"{source.path}: a model of {config.classes} classes, {config.channels} channels and {config.image_size}, "
            f"where {folder.name} has {wanted[0]}, {wanted[1]} and {wanted[2]}"
        )
    stored = experiment.evaluation.reference.endswith(".npz")
    evaluation = replace(
        experiment.evaluation, images=images, label_images=reference, seed=seed, further_detectors=(),
        reference_images=None if stored else reference,
    )  # fmt: skip
    inputs = inputs_of(evaluation, manifest, detector)
    request = request_of(
        evaluation, experiment.sampler, inputs, classes=config.classes, difficulty_head=config.difficulty_head
    )
    return Measurable(
        source=str(source.path), sha256=source.sha256,
        request=replace(request, loss=False, difficulty=(), context=()), evaluation=evaluation,
        sampler=experiment.sampler, storage=storage.uri,
        reference=reference_images(evaluation, folder, inputs, manifest.resolution), data=str(folder),
        weights="raw" if source.weights == "raw" else "ema", detector=evaluation.detector,
        detector_weights=evaluation.detector_weights,
    )  # fmt: skip


def front_summary(sweep: SamplerSweep, source: Source, frame: pd.DataFrame) -> Summary:
    """The front as a table with a figure, and a note on the accuracy of the numbers.

    Args:
        frame: one row per sampler, at least one.
    """
    distance = sweep.distance
    front = frame[frame["front"]].sort_values("NFE").drop(columns="front")
    seen = f"{source.images_seen:,} images seen" if source.images_seen is not None else "images seen unknown"
    model = f"{source.path.name} ({seen}, {source.weights} weights)"
    title = f"{sweep.name}: the front of {counted(len(frame), 'sampler')} on {model}"
    known = [name for name in front if name == "again" or front[name].notna().any()]
    shown = front[known].rename(columns={"again": f"{distance}, other noise"})
    found = Report(shown, title, [_caveat(sweep, frame, distance)])
    figure = png(front_figure(frame, distance)), "All samplers; the front is filled"
    return Summary(Section(title, report=found, figures=[figure], commands=[this_command()]), frame, (), distance)


def report(sweep: SamplerSweep, source: Source, outcome: Outcome, folder: Path, console: Console) -> bool:
    """Print and write the front as a table, all samplers as CSV, and the figure, with a note on the accuracy of the
    numbers. Returns whether there were any."""
    frame, distance = outcome.frame, sweep.distance
    if frame.empty:
        console.print("Nothing was measured yet.")
        return False
    found = front_summary(sweep, source, frame)
    found.report.print(console)
    found.report.write(folder / sweep.name)
    every = frame.sort_values(["NFE", distance]).to_csv(index=False)  # all samplers, not only the front
    write_text(folder / f"{sweep.name}.csv", every)
    write_bytes(folder / f"{sweep.name}.png", found.section.figures[0][0], lasting=False)
    console.print(
        f"The front, all samplers (csv) and the figure: {folder / sweep.name}.{{csv,md,tex,html,png}}",
        soft_wrap=True,
    )  # fmt: skip
    for name, reason in outcome.failed.items():
        console.print(f"FAILED ({reason}): {name}; the same command retries it")
    if (
        outcome.measured >= MEASURED_TO_TELL * outcome.workers > 0
    ):  # for only a few, most of it would be the wait for the last one
        idle = outcome.seconds * outcome.workers - outcome.busy_seconds
        console.print(
            f"{counted(outcome.measured, 'measurement')} in {outcome.seconds:.0f} s on "
            f"{counted(outcome.workers, 'worker')}; outside of sampling "
            f"{idle / outcome.measured:.2f} s of a worker per measurement.",
            soft_wrap=True,
        )
    return True


def _caveat(sweep: SamplerSweep, frame: pd.DataFrame, distance: str) -> str:
    request = sweep.subject.request
    text = (
        f"Smaller is better. {request.images:,} generated images per sampler, all from the noise of seed "
        f"{request.seed}; guidance scale {sweep.guidance.scale:g}."
    )
    both = frame.dropna(subset=["again"])
    if len(both):
        difference = (both["again"] - both[distance]).abs()
        text += (
            f" From other noise the front's distances differ by {difference.mean():.2f} on average (at most "
            f"{difference.max():.2f}, n = {len(both)}): smaller differences between samplers are not established."
        )
    return text
