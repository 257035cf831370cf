"""Finds a trained model by what a user calls it: a path, a run, an experiment, the best run of a sweep."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from pforce import catalog
from pforce.data import Manifest, ensure
from pforce.metrics.distances import metric_name
from pforce.orchestration.plan import tracker_of, tracking_uri_of
from pforce.records.ledger import Ledger
from pforce.records.parts import BFLOAT16, FLOAT32, CellParts, cell_parts
from pforce.records.row import row_of
from pforce.records.sweeps import CellEntry, read_sweeps
from pforce.results.stored import storage_frame
from pforce.storage import Storage
from pforce.tracking import runs_frame, sqlite_path
from pforce.trial.folder import EVALUATIONS, EXPERIMENT, training_folder
from pforce.trial.mirror import TrialMirror
from pforce.trial.reference import inputs_of
from pforce.trial.run import with_precision
from pforce.trial.source import SourceError

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
    place, problems = Storage.open(storage), _Problems()
    ledger = Ledger(place, problems)
    cells = {cell.cell: cell for entry in read_sweeps(place, problems) for cell in entry.cells}
    if not cells and tracking_uri is None:
        raise SourceError(
            f"{text}: no such file, and {place} holds no sweeps (set --storage). A model is {FORMS}{problems}"
        )
    if text.startswith(BEST):
        return _folder(place, _entry(cells, _best(place, ledger, text.removeprefix(BEST)), text), text)
    if re.fullmatch(r"[0-9a-f]{32}", text):
        wanted = text if text in cells else _of_run(place, tracking_uri, text)
        return _folder(place, _entry(cells, wanted, text), text)
    if text not in catalog.experiments():
        raise SourceError(f"{text}: no such file, experiment or run. A model is {FORMS}")
    experiment = catalog.experiment(text)
    evaluation = experiment.evaluation
    manifest, detector = Manifest.load(ensure(experiment.data)), evaluation.load_detector()
    for auto in (BFLOAT16, FLOAT32):
        inputs = inputs_of(evaluation, manifest, detector, auto=auto)
        parts = cell_parts(with_precision(experiment, inputs), inputs)
        if row_of(parts, ledger) is not None:
            return _folder(place, parts, text)
    raise SourceError(f"{text}: {place} has no finished cell of this experiment. Train it: pforce train {text}")


class _Problems(list[str]):
    """Lines about damage, for the end of an error's message."""

    def __call__(self, line: str) -> None:
        self.append(line)

    def __str__(self) -> str:
        return "".join(f"; {line}" for line in self)


def _entry(cells: dict[str, CellEntry], wanted: str, text: str) -> CellParts:
    """A cell's parts, by its digest."""
    parts = cells[wanted].parts() if wanted in cells else None
    if parts is None:
        raise SourceError(f"{text}: its run trained nothing, or is of an earlier version: give its folder's path")
    return parts


def _of_run(place: Storage, tracking_uri: str | None, run_id: str) -> str:
    """The digest of the cell that an MLflow run is of."""
    uri = tracking_uri_of(place, tracking_uri)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise SourceError(f"{run_id}: {place} has no cell of this digest, and no MLflow database to look for a run in")
    tracker = tracker_of(place, tracking_uri)
    frame = runs_frame(tracker)
    found = frame[frame["run_id"] == run_id] if len(frame) else frame
    if found.empty:
        raise SourceError(f"{run_id}: no run of {tracker.shown} has this id, and no cell of {place} this digest")
    return str(found.iloc[0]["fingerprint"])


def _best(place: Storage, ledger: Ledger, sweep: str) -> str:
    """The digest of the sweep's finished cell with the smallest distance."""
    finished: pd.DataFrame = storage_frame(place, sweep, ledger=ledger)
    if finished.empty:
        raise SourceError(f"{BEST}{sweep}: {place} has no finished cell of a sweep {sweep}")
    known = "evaluation.detector" in finished and "cost/images_seen" in finished
    detectors: list[str] = list(finished["evaluation.detector"].dropna().unique()) if known else []
    if not detectors:  # a sampler sweep's runs
        raise SourceError(f"{BEST}{sweep}: its runs trained nothing; give the sweep that did")
    distance = metric_name("fd", detectors[0].rsplit(":", 1)[-1])
    if len(detectors) > 1 or distance not in finished:
        raise SourceError(f"{BEST}{sweep}: its runs have no distance in common; give one run's id")
    trained = finished.dropna(subset=[distance, "cost/images_seen"])
    if trained.empty:
        raise SourceError(f"{BEST}{sweep}: none of its cells has a distance; give one run's id")
    for name in (f"{distance}_images", "cost/nfe"):
        if name in trained and trained[name].nunique() > 1:
            values = ", ".join(f"{value:g}" for value in sorted(trained[name].unique()))
            raise SourceError(
                f"{BEST}{sweep}: its runs differ in {name} ({values}), so their distances do not compare; give "
                "one run's id"
            )
    return str(trained.sort_values(distance).iloc[0]["fingerprint"])


def _folder(storage: Storage, parts: CellParts, text: str) -> Path:
    """The cell's own folder where it has one: it says with which sampler it was measured."""
    relative = training_folder(parts.training.digest, parts.images_seen)
    folder = storage.root / relative
    if storage.remote:
        TrialMirror(storage, relative, EXPERIMENT).fetch(f"{EVALUATIONS}/{parts.digest}/{EXPERIMENT}")
    if not folder.is_dir():
        raise SourceError(
            f"{text}: it is recorded, but its files are not in {storage}: give the --storage of its sweep"
        )
    own = folder / EVALUATIONS / parts.digest
    return own if (own / EXPERIMENT).exists() else folder
