"""Migration of results of commit 0641df2 from its lines of JSON.

Each old name is computed again from the parameters beside it; results that do not match are refused, reported, and
measured again. A result whose tensors are missing gets weights under a name of their own, so that it never shares a row
with measurements of other weights.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pforce.base.files import digest, read_whole
from pforce.config import Experiment, flat_params, to_dict
from pforce.metrics.detectors import Detector, DetectorError, load_detector
from pforce.metrics.detectors.inception import InceptionDetector
from pforce.metrics.distances import KINDS_OF, name_of
from pforce.metrics.names import (
    CALIBRATION,
    CONTEXT,
    CURVE_POINT,
    DAMAGED_SAMPLES,
    DIFFICULTY,
    VALIDATION_LOSS,
    CostName,
    MetricName,
    read_names,
)
from pforce.metrics.names import KINDS as NAME_KINDS
from pforce.records import exchange, legacy
from pforce.records.cost import Cost
from pforce.records.ledger import Ledger
from pforce.records.legacy import NOT_WELL_FORMED
from pforce.records.parts import Analysis, CellParts, Inputs, Part, Request, cell_parts
from pforce.records.record import Record, RecordError
from pforce.records.row import TENSORS
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.storage import Storage

Say = Callable[[str], None]
HELD_OUT_KINDS: Mapping[Analysis, Sequence[str]] = {
    "loss": (VALIDATION_LOSS,), "difficulty": (*DIFFICULTY, *CALIBRATION), "context": CONTEXT,
}  # fmt: skip
DRAWN = (CostName.NFE, CostName.FORWARD_PASSES, CostName.FLOPS, CostName.SAMPLING_SECONDS)


@dataclass
class Carried:
    """The outcome of a migration."""

    cells: int = 0
    there: int = 0
    """Number of cells that were known already."""
    trainings: int = 0
    refused: list[str] = field(default_factory=list)
    """One sentence per result that is refused and has to be measured again."""


@dataclass(frozen=True)
class OldCell:
    """An old result, checked, with its present names."""

    sweep: str
    label: str
    experiment: Experiment
    parts: CellParts
    metrics: Mapping[str, float]
    started: float
    finished: float
    provenance: Mapping[str, str]
    picture: Path | None = None
    folder: Path | None = None
    """Folder of the evaluation, where it lies in a storage."""


@cache
def known_detector(name: str) -> Detector | None:
    """The detector of a name; None where it cannot be loaded."""
    try:
        return load_detector(name)
    except (DetectorError, ValueError):  # its weights are in a file that is not given here
        return None


def _preprocessing(name: str, sha256: str) -> str:
    """Preprocessing of an old result's detector. RecordError where the detector is not available here."""
    if name == "inception":
        return InceptionDetector.preprocessing
    found = None if ":" in name else known_detector(name)
    if found is None or found.sha256 != sha256:
        raise RecordError(f"detector {name} ({sha256[:12]}) is not available, so its features cannot be named")
    return found.preprocessing


def inputs_of_then(experiment: Experiment, metrics: Mapping[str, float], hashes: Mapping[str, str]) -> Inputs:
    """Inputs of an old result, from its own record, without the data set."""
    evaluation = experiment.evaluation
    name = evaluation.detector_name
    references = int(metrics.get(str(MetricName("fd", name, beside="reference_images")), 0))
    if evaluation.reference == "validation" and references:
        validation, train = references, 0
    elif evaluation.reference == "train":
        validation, train = evaluation.held_out_images, references
    else:
        validation, train = evaluation.held_out_images, 0
    return Inputs(
        hashes["data"], train, validation, name, hashes["detector"],
        _preprocessing(evaluation.detector, hashes["detector"]), hashes.get("reference"),
    )  # fmt: skip


def of_line(line: Mapping[str, Any], folder: Path) -> OldCell:
    """The result in a line of old records. RecordError where its old names do not match its parameters."""
    name, tags = f"{line['sweep']}: {line['name']}", line["tags"]
    try:
        plain = legacy.plain_of(line["params"])
        hashes = {key.removeprefix("input."): value for key, value in tags.items() if key.startswith("input.")}
        old, training = legacy.fingerprint(plain, hashes), legacy.training_fingerprint(plain, hashes["data"])
        experiment = legacy.experiment_of(plain)
        inputs = inputs_of_then(experiment, line["metrics"], hashes)
    except NOT_WELL_FORMED as error:
        raise RecordError(
            f"{name}: cannot be carried over ({type(error).__name__}: {error}); measured again"
        ) from error
    if old != line["fingerprint"] or training != tags.get("pforce.training", training):
        raise RecordError(f"{name}: its fingerprint is not that of its parameters, so it is refused; measured again")
    made = {key: value for key, value in tags.items() if key.startswith("version.") or key in (
        "device", "precision", "workers", "threads")}  # fmt: skip
    if commit := tags.get("mlflow.source.git.commit"):
        made["commit"] = commit
    precision = tags.get("precision", experiment.training.precision)
    experiment = replace(experiment, training=replace(experiment.training, precision=precision))
    return OldCell(
        line["sweep"], line["name"], experiment, cell_parts(experiment, inputs), line["metrics"],
        line["started"] / 1000, line["ended"] / 1000, made, _picture(line["files"], folder),
    )  # fmt: skip


def _picture(names: Sequence[str], folder: Path) -> Path | None:
    """Path of the picture that a line names. Names in lines are not trusted, so only `pictures/DIGITS/samples.png` is
    read."""
    for name in names:
        parts = name.split("/")
        if len(parts) == 3 and parts[2] == "samples.png" and all(re.fullmatch(r"[\w-]+", part) for part in parts[:2]):
            path = folder / name
            if path.is_file() and not path.is_symlink():
                return path
    return None


def put_cell(cell: OldCell, ledger: Ledger, origin: str, tensors: str | None = None) -> str:
    """Write the records of an old result and return the hash of its weights.

    Args:
        tensors: hash of the weights, where they are there; else they get a name of their own, equal for cells of one
            training.
    """
    metrics, parts = cell.metrics, cell.parts
    spent = float(metrics.get(CostName.TRAINING_SECONDS, math.nan))
    known = ledger.get(parts.weights)
    if tensors is None:
        tensors = digest("migrated weights", [parts.weights.digest, repr(spent), cell.provenance.get("device", "")])
    if known is None:
        # The old format has one number of devices for training and evaluation.
        seconds = float(metrics.get(CostName.SECONDS, math.nan))
        devices = float(metrics.get(CostName.DEVICE_HOURS, math.nan)) * 3600 / seconds if seconds else math.nan
        cost = Cost(spent, spent * devices, images=float(parts.images_seen))
        ledger.put(Record.of(
            parts.training, values={"experiment": to_dict(cell.experiment)}, started=cell.started,
            finished=cell.finished, provenance=dict(cell.provenance), origin=origin,
        ))  # fmt: skip
        values: dict[str, object] = {
            TENSORS: tensors,
            DAMAGED_SAMPLES: float(metrics.get(DAMAGED_SAMPLES, 0.0)),
            **{name: float(value) for name, value in metrics.items() if name in CURVE_POINT},
        }
        known = ledger.put(Record.of(
            parts.weights, values=values, started=cell.started, finished=cell.finished, origin=origin,
            cost=cost.plain(), provenance=dict(cell.provenance),
        ))  # fmt: skip
    weights = str(known.values[TENSORS])
    if weights != tensors:
        raise RecordError(
            f"{cell.sweep}: {cell.label}: is of another run of its training than the known one; measured again"
        )
    found = values_by_part(parts.request, weights, metrics)
    lacking = [part.canonical.get("metric") or part.canonical.get("analysis") for part, values in found if not values]
    if any(lacking):
        raise RecordError(
            f"{cell.sweep}: {cell.label}: lacks {', '.join(map(str, filter(None, lacking)))}; measured again"
        )
    for part, numbers in found:
        _put(part, numbers, cell, ledger, origin)
    return weights


def _put(part: Part, values: Mapping[str, float], cell: OldCell, ledger: Ledger, origin: str) -> None:
    if ledger.get(part) is not None:
        return
    cost = Cost()
    files: dict[str, str] = {}
    if part.kind == "drawing":
        spent = float(cell.metrics.get(CostName.EVALUATION_SECONDS, 0.0))
        seconds = float(cell.metrics.get(CostName.SECONDS, 0.0))
        share = float(cell.metrics.get(CostName.DEVICE_HOURS, 0.0)) * 3600 / seconds if seconds else 1.0
        cost = Cost(spent, spent * share)
        if cell.picture is not None:
            content = read_whole(cell.picture)
            files["samples.png"] = hashlib.sha256(content).hexdigest()
            ledger.put_file(content, files["samples.png"])
    ledger.put(Record.of(
        part, values=dict(values), files=files, started=cell.started, finished=cell.finished, origin=origin,
        cost=cost.plain(), provenance=dict(cell.provenance),
    ))  # fmt: skip


def values_by_part(
    request: Request, weights: str, metrics: Mapping[str, float]
) -> list[tuple[Part, dict[str, float]]]:  # fmt: skip
    """The numbers of a row by the parts that they belong to; the drawing with its cost is the last."""
    found: list[tuple[Part, dict[str, float]]] = []
    for metric, part in request.image_parts(weights).items():
        several = [name_of(kind, request.detector["name"]) for kind in KINDS_OF[metric]]
        names = [str(name.with_beside(each)) for name in several for each in (None, *NAME_KINDS[name.kind].beside)]
        found.append((part, {name: metrics[name] for name in names if name in metrics}))
    known = read_names(metrics)
    for (analysis, time), part in request.held_out_parts(weights).items():
        kinds, t = HELD_OUT_KINDS[analysis], None if analysis == "loss" else float(time)
        own = [text for text, name in known.items() if name.kind in kinds and t in (None, name.t)]
        found.append((part, {name: metrics[name] for name in own}))
    return [*found, (request.drawn(weights), {name: metrics[name] for name in DRAWN if name in metrics})]


def carry_lines(path: Path, storage: Storage, say: Say, progress: Callable[[int], None] = lambda done: None) -> Carried:
    """Import the lines of a file into a storage, with their sweeps."""
    carried, ledger = Carried(), Ledger(storage, say)
    entries: dict[str, list[CellEntry]] = {}
    for number, line in enumerate(legacy.read_lines(path), start=1):
        try:
            cell = of_line(line, path.parent)
            before = ledger.get(cell.parts.weights)
            put_cell(cell, ledger, path.name)
        except RecordError as error:
            carried.refused.append(str(error))
            continue
        finally:
            progress(number)
        carried.cells += 1
        carried.there += before is not None and before.origin != path.name
        entries.setdefault(cell.sweep, []).append(entry_of(cell))
    keep_sweeps(entries, storage, path.name)
    return carried


def storage_of(files: Sequence[Path], folder: Path) -> Storage:
    """A storage in a folder with the records of these files, of this version or of commit 0641df2. For notebooks."""
    storage = Storage.open(folder)
    take_in(files, storage, warnings.warn)
    return storage


def take_in(files: Iterable[Path], storage: Storage, say: Callable[[str], None]) -> None:
    """Import the records of files, of this version or of commit 0641df2, into a storage."""
    for path in files:
        if exchange.is_old(path):
            carry_lines(path, storage, say)
        else:
            exchange.import_lines(storage, path, say)


def entry_of(cell: OldCell) -> CellEntry:
    """An old result as a cell of its sweep."""
    return CellEntry.of(cell.label, cell.parts, flat_params(cell.experiment), cell.experiment.seed)


def keep_sweeps(entries: Mapping[str, Sequence[CellEntry]], storage: Storage, origin: str) -> None:
    """Write the files of the old sweeps. A name that is not possible for a sweep is adapted."""
    for name, cells in entries.items():
        several = list({cell.cell: cell for cell in cells}.values())
        own = re.sub(r"[^\w.-]", "_", name)[:200]
        own = own if own.strip(".") else f"sweep{own}"
        identity = digest("migrated sweep", [own, origin, sorted(cell.cell for cell in several)])
        SweepEntry(own, identity, several, command=f"pforce records migrate {origin}").write(storage)
