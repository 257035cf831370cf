"""Finds a trained model by what a user calls it: a path, a run, an experiment, the best run of a sweep."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from pforce import catalog
from pforce.config import fingerprint, training_fingerprint
from pforce.data import Manifest, ensure
from pforce.metrics.distances import metric_name
from pforce.mirror import TrialMirror
from pforce.orchestration.plan import TRIALS, tracker_of, tracking_uri_of
from pforce.references import inputs_of
from pforce.sources import EVALUATIONS, EXPERIMENT, SourceError
from pforce.storage import Storage
from pforce.tracking import Tracker, runs_frame, sqlite_path

BEST = "best:"
FORMS = (
    "a trial's folder or checkpoint, a .safetensors or published .ckpt file, an MLflow run id, an experiment that "
    f"was trained (pforce experiments), or {BEST}SWEEP such as {BEST}ltg_grid"
)


def find_source(text: str, *, storage: str | Path, tracking_uri: str | None = None) -> Path:
    """The path of a model, for `pforce.sources.load_source`. SourceError says what was looked for, and where.

    Args:
        text: one of `FORMS`.
        storage: where sweeps leave their files, as `Storage.open` reads it; out of a bucket the model is pulled into
            its mirror. tracking_uri: by default the storage's database.
    """
    if Path(text).exists():
        return Path(text)
    if not text.startswith(BEST) and ("/" in text or Path(text).suffix):
        raise SourceError(f"{text}: does not exist. A model is {FORMS}")
    place = Storage.open(storage)
    uri = tracking_uri_of(place, tracking_uri)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise SourceError(
            f"{text}: no such file, and {place} holds no runs (set --storage or --tracking-uri). A model is {FORMS}"
        )
    tracker = tracker_of(place, tracking_uri)
    if text.startswith(BEST):
        return _folder(place, *_best(tracker, text.removeprefix(BEST)), text)
    if re.fullmatch(r"[0-9a-f]{32}", text):
        frame = runs_frame(tracker)
        found = frame[(frame["run_id"] == text) | (frame["fingerprint"] == text)] if len(frame) else frame
        if found.empty:
            raise SourceError(f"{text}: no run of {tracker.shown} has this id or fingerprint")
        return _folder(place, *_training(found.iloc[0], text), text)
    if text not in catalog.experiments():
        raise SourceError(f"{text}: no such file, experiment or run. A model is {FORMS}")
    experiment = catalog.experiment(text)
    evaluation = experiment.evaluation
    inputs = inputs_of(evaluation, Manifest.load(ensure(experiment.data)), evaluation.load_detector())
    wanted = fingerprint(experiment, inputs)
    if wanted not in tracker.finished([wanted]):
        raise SourceError(
            f"{text}: no finished run of this experiment in {tracker.shown}. Train it: pforce train {text}"
        )
    return _folder(place, training_fingerprint(experiment, inputs), wanted, text)


def _training(run: pd.Series, text: str) -> tuple[str, str]:
    """Fingerprints of the training that a run belongs to, and of the run."""
    found = run.get("training")
    if not isinstance(found, str):
        raise SourceError(f"{text}: its run trained nothing, or is of an earlier version: give its folder's path")
    return found, str(run["fingerprint"])


def _best(tracker: Tracker, sweep: str) -> tuple[str, str]:
    """The same of the sweep's finished run with the smallest distance."""
    frame = runs_frame(tracker, sweep)
    finished = frame[frame["status"] == "FINISHED"] if len(frame) else frame
    if finished.empty:
        raise SourceError(f"{BEST}{sweep}: {tracker.shown} has no finished run of a sweep {sweep}")
    known = "evaluation.detector" in finished and "cost/images_seen" in finished
    detectors: list[str] = list(finished["evaluation.detector"].dropna().unique()) if known else []
    if not detectors:  # a sampler sweep's runs
        raise SourceError(f"{BEST}{sweep}: its runs trained nothing; give the sweep that did")
    distance = metric_name("fd", detectors[0].rsplit(":", 1)[-1])
    if len(detectors) > 1 or distance not in finished:
        raise SourceError(f"{BEST}{sweep}: its runs have no distance in common; give one run's id")
    trained = finished.dropna(subset=[distance, "cost/images_seen"])
    for name in (f"{distance}_images", "cost/nfe"):
        if name in trained and trained[name].nunique() > 1:
            values = ", ".join(f"{value:g}" for value in sorted(trained[name].unique()))
            raise SourceError(
                f"{BEST}{sweep}: its runs differ in {name} ({values}), so their distances do not compare; give "
                "one run's id"
            )
    return _training(trained.sort_values(distance).iloc[0], f"{BEST}{sweep}")


def _folder(storage: Storage, training: str, fingerprint: str, text: str) -> Path:
    """The run's own folder where it has one: it says with which sampler the run was measured."""
    folder = storage.root / TRIALS / training
    if storage.remote:
        TrialMirror(storage, f"{TRIALS}/{training}", EXPERIMENT).fetch(f"{EVALUATIONS}/{fingerprint}/{EXPERIMENT}")
    if not folder.is_dir():
        raise SourceError(
            f"{text}: its run is recorded, but its files are not in {storage}: give the --storage of its sweep"
        )
    own = folder / EVALUATIONS / fingerprint
    return own if (own / EXPERIMENT).exists() else folder
