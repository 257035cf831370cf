"""Search for a trained model by the user's name for it: a path, a run, an experiment, or the best run of a sweep."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pforce import catalog
from pforce.base.errors import HINT, did_you_mean
from pforce.config import flat_params, from_flat
from pforce.data import Manifest, ensure
from pforce.metrics.distances import metric_name
from pforce.metrics.names import CostName
from pforce.orchestration.options import tracker_of, tracking_uri_of
from pforce.records.ledger import Ledger
from pforce.records.parts import BFLOAT16, FLOAT32, cell_parts
from pforce.records.row import row_of, tensors_of
from pforce.records.sweeps import CellEntry, read_sweeps
from pforce.results.stored import storage_frame
from pforce.storage import Storage
from pforce.tracking import cell_of_run, sqlite_path
from pforce.training.checkpoint import snapshot_path
from pforce.trial.folder import EVALUATIONS, EXPERIMENT, training_folder
from pforce.trial.mirror import TrialMirror
from pforce.trial.reference import inputs_of
from pforce.trial.source import Source, SourceError, Weights, load_source
from pforce.trial.where import with_precision

BEST = "best:"
SHA256_DIGITS = 64
FORMS = (
    "a trial's folder or checkpoint, a .safetensors or published .ckpt file, an MLflow run id, an experiment that "
    f"was trained (pforce experiments), or {BEST}SWEEP such as {BEST}ltg_grid"
)


class _Cell(NamedTuple):
    """A cell that the user has named."""

    entry: CellEntry
    tensors: str | None
    """Recorded hash of its weights; None where the record does not hold the tensors' hash."""


def find_model(
    text: str, *, storage: str | Path, tracking_uri: str | None = None, weights: Weights = "ema",
    heads: int | None = None,
) -> Source:  # fmt: skip
    """Find and read a model. SourceError as in `find_source`, and where a recorded cell's files hold other weights than
    were measured.

    Args:
        text, storage, tracking_uri: as in `find_source`.
        weights, heads: as in `load_source`.
    """
    path, cell = _find(text, storage, tracking_uri)
    source = load_source(path, weights=weights, heads=heads)
    if cell is None:
        return source
    tensors = cell.tensors
    if weights == "ema" and tensors is not None and source.sha256 != tensors:
        raise SourceError(
            f"{text}: {source.path} holds other weights ({source.sha256[:12]}, {source.images_seen or 0:,} images "
            f"seen) than were measured ({tensors[:12]}): its snapshot is damaged. The command that trained it "
            "makes it again; to use the present one, give the snapshot's own folder"
        )
    # A training's folder holds the experiment that trained it first, which may have another sampler.
    return replace(source, experiment=from_flat(cell.entry.params))


def find_source(text: str, *, storage: str | Path, tracking_uri: str | None = None) -> Path:
    """The path of a model, for `load_source`. SourceError says what was searched for, and where.

    Args:
        text: one of `FORMS`.
        storage: storage of sweeps, as `Storage.open` reads it; from a bucket, the model is pulled into its mirror.
        tracking_uri: MLflow store; by default, the storage's database.
    """
    return _find(text, storage, tracking_uri)[0]


def _find(text: str, storage: str | Path, tracking_uri: str | None) -> tuple[Path, _Cell | None]:
    """The path of a model, and its cell, where the user has named one."""
    if Path(text).exists():
        return Path(text), None
    if not text.startswith(BEST) and ("/" in text or Path(text).suffix):
        raise SourceError(f"{text}: does not exist. A model is {FORMS}")
    place, problems = Storage.open(storage), _Problems()
    ledger = Ledger(place, problems)
    entries = list(read_sweeps(place, problems))
    cells = {cell.cell: cell for entry in entries for cell in entry.cells}
    if not cells and tracking_uri is None:
        raise SourceError(
            f"{text}: no such file, and {place} holds no sweeps (set --storage). A model is {FORMS}{problems}"
        )
    if text.startswith(BEST):
        sweep = text.removeprefix(BEST)
        if sweep not in (names := dict.fromkeys(entry.name for entry in entries)):
            raise SourceError(f"{text}: {place} has no sweep {sweep}; {did_you_mean(sweep, names)}{problems}")
        return _of_cell(place, ledger, _entry(cells, _best(place, ledger, sweep), text), text)
    if re.fullmatch(r"[0-9a-f]{32}", text):
        wanted = text if text in cells else _of_run(place, tracking_uri, text)
        return _of_cell(place, ledger, _entry(cells, wanted, text), text)
    if text not in catalog.experiments():
        near = did_you_mean(text, [*catalog.experiments(), *(f"{BEST}{entry.name}" for entry in entries)])
        hint = f"; {near}" if HINT in near else "."
        raise SourceError(f"{text}: no such file, experiment or run{hint} A model is {FORMS}")
    experiment = catalog.experiment(text)
    evaluation = experiment.evaluation
    manifest, detector = Manifest.load(ensure(experiment.data)), evaluation.load_detector()
    for auto in (BFLOAT16, FLOAT32):
        inputs = inputs_of(evaluation, manifest, detector, auto=auto)
        resolved = with_precision(experiment, inputs)
        entry = CellEntry.of(text, cell_parts(resolved, inputs), flat_params(resolved), resolved.seed)
        if row_of(cell_parts(resolved, inputs), ledger) is not None:
            return _of_cell(place, ledger, entry, text)
    raise SourceError(f"{text}: {place} has no finished cell of this experiment. Train it: pforce train {text}")


class _Problems(list[str]):
    """Lines about damage, appended to an error's message."""

    def __call__(self, line: str) -> None:
        self.append(line)

    def __str__(self) -> str:
        return "".join(f"; {line}" for line in self)


def _entry(cells: dict[str, CellEntry], wanted: str, text: str) -> CellEntry:
    """The trained cell with a digest."""
    if wanted not in cells or cells[wanted].training is None:
        raise SourceError(f"{text}: its run trained nothing, or is of an earlier version: give its folder's path")
    return cells[wanted]


def _of_run(place: Storage, tracking_uri: str | None, run_id: str) -> str:
    """The digest of an MLflow run's cell."""
    uri = tracking_uri_of(place, tracking_uri)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise SourceError(f"{run_id}: {place} has no cell of this digest, and no MLflow database to look for a run in")
    tracker = tracker_of(place, tracking_uri)
    found = cell_of_run(tracker, run_id)
    if found is None:
        raise SourceError(f"{run_id}: no run of {tracker.shown} has this id, and no cell of {place} this digest")
    return found


def _best(place: Storage, ledger: Ledger, sweep: str) -> str:
    """The digest of a sweep's finished cell with the smallest distance."""
    found = storage_frame(place, sweep, ledger=ledger)
    finished: pd.DataFrame = found[found["status"] == "FINISHED"] if len(found) else found
    if finished.empty:
        raise SourceError(f"{BEST}{sweep}: {place} has no finished cell of a sweep {sweep}")
    known = "evaluation.detector" in finished and CostName.IMAGES_SEEN in finished
    detectors: list[str] = list(finished["evaluation.detector"].dropna().unique()) if known else []
    if not detectors:  # a sampler sweep's runs
        raise SourceError(f"{BEST}{sweep}: its runs trained nothing; give the sweep that did")
    distance = metric_name("fd", detectors[0].rsplit(":", 1)[-1])
    if len(detectors) > 1 or distance not in finished:
        raise SourceError(f"{BEST}{sweep}: its runs have no distance in common; give one run's id")
    trained = finished.dropna(subset=[distance, CostName.IMAGES_SEEN])
    if trained.empty:
        raise SourceError(f"{BEST}{sweep}: none of its cells has a distance; give one run's id")
    for name in (f"{distance}_images", CostName.NFE):
        if name in trained and trained[name].nunique() > 1:
            values = ", ".join(f"{value:g}" for value in sorted(trained[name].unique()))
            raise SourceError(
                f"{BEST}{sweep}: its runs differ in {name} ({values}), so their distances do not compare; give "
                "one run's id"
            )
    return str(trained.sort_values(distance).iloc[0]["fingerprint"])


def _of_cell(storage: Storage, ledger: Ledger, entry: CellEntry, text: str) -> tuple[Path, _Cell]:
    """The folder of a cell's evaluation, where it has one, else its snapshot; with the cell."""
    parts = entry.parts()
    assert parts is not None  # `_entry` and the catalog return trained cells only
    relative = training_folder(parts.training.digest)
    folder = storage.root / relative
    if storage.remote:
        mirror = TrialMirror(storage, relative, EXPERIMENT)
        mirror.fetch(parts.images_seen, f"{EVALUATIONS}/{parts.digest}/{EXPERIMENT}")
    snapshot = snapshot_path(folder, parts.images_seen)
    if not snapshot.is_dir():
        raise SourceError(
            f"{text}: it is recorded, but its files are not in {storage}: give the --storage of its sweep"
        )
    own = folder / EVALUATIONS / parts.digest
    known = tensors_of(parts, ledger)
    # Results that were migrated without their tensors have another name here.
    tensors = known[0] if known and len(known[0]) == SHA256_DIGITS else None
    return own if (own / EXPERIMENT).exists() else snapshot, _Cell(entry, tensors)
