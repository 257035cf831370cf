"""Weights of finished cells as models in MLflow, where somebody asks for them: they are copies, and large."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from pforce.records.cell import result_of
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts
from pforce.records.row import tensors_of
from pforce.records.status import FINISHED
from pforce.records.sweeps import CellEntry
from pforce.tracking.models import log_model
from pforce.tracking.page import Page
from pforce.training.checkpoint import snapshot_path
from pforce.trial.folder import EXPERIMENT, training_folder
from pforce.trial.mirror import TrialMirror
from pforce.trial.source import Source, SourceError, load_source


class ModelCounts(NamedTuple):
    """Numbers of models by what became of them."""

    made: int = 0
    there: int = 0
    """Models that MLflow had already."""
    lost: int = 0
    """Models whose weights are gone, or other ones than the records name."""


def show_models(page: Page, cells: Sequence[CellEntry], ledger: Ledger) -> ModelCounts:
    """Make the weights of finished cells models of their runs. Raises the store's error."""
    made = there = lost = 0
    runs = page.find([page.key(cell.cell) for cell in cells])
    for cell in cells:
        result, parts, run = result_of(cell, ledger), cell.parts(), runs.get(page.key(cell.cell))
        if parts is None or result is None or result.status != FINISHED or run is None or run.deleted:
            continue
        shown = page.client.get_run(run.run_id)
        try:
            new = log_model(page, shown, _name(cell), partial(_read, parts, ledger))
        except SourceError as error:
            ledger.say(f"{cell.label}: its weights are no model in MLflow: {error}")
            lost += 1
            continue
        made, there = made + new, there + (not new)
    return ModelCounts(made, there, lost)


def _name(cell: CellEntry) -> str:
    """A name that MLflow takes: the cell's, at its images seen."""
    plain = "".join("_" if sign in "/:.%\"'" else sign for sign in cell.label)
    return f"{plain} at {cell.images_seen}"[:200]


def _read(parts: CellParts, ledger: Ledger) -> Source:
    """The model of a cell. SourceError where it is gone, or another one than the records name."""
    storage, relative = ledger.storage, training_folder(parts.training.digest)
    if storage.remote:
        TrialMirror(storage, relative, EXPERIMENT).fetch(parts.images_seen)
    path = snapshot_path(storage.root / relative, parts.images_seen)
    if not path.exists():
        raise SourceError(f"{path} is gone: the same sweep with further seeds, or a new storage, trains it again")
    source, known = load_source(path), tensors_of(parts, ledger)
    if known is None or source.sha256 != known[0]:
        raise SourceError(f"{path} holds other weights ({source.sha256[:12]}) than its record names")
    return source
