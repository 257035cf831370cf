"""Carries results of commit 0641df2 over: its lines of JSON, and the trainings of an existing storage.

Each old name is computed again from what lies beside it; what does not match is refused, said, and measured again. A
result whose tensors are not here belongs to weights under a name of their own, so that it never shares a row with what
is measured of others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from pforce.config import Experiment, flat_params, to_dict
from pforce.files import digest, read_small, sha256_of, write_json
from pforce.metrics.detectors import Detector, DetectorError, load_detector
from pforce.metrics.detectors.inception import InceptionDetector
from pforce.metrics.names import (
    BESIDE,
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
from pforce.models.weights import WeightsError, filled
from pforce.records import exchange, legacy
from pforce.records.cost import Cost
from pforce.records.ledger import Ledger
from pforce.records.legacy import NOT_WELL_FORMED
from pforce.records.parts import Analysis, CellParts, Inputs, Part, Request, cell_parts
from pforce.records.record import Record, RecordError
from pforce.records.row import TENSORS
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.storage import Storage
from pforce.training.checkpoint import CHECKSUM, FORMAT, STATE, checkpoint_path, checksum, snapshot_path
from pforce.training.curve import write_segment
from pforce.training.loop import Record as Point
from pforce.trial.folder import training_folder
from pforce.trial.source import content_hash

Say = Callable[[str], None]
OLD_TRIALS = "trials"
KINDS_OF = {
    "frechet": ("fd", "sfd"), "frechet_infinity": ("fd_infinity",), "kernel": ("kd",),
    "precision_recall": ("precision", "recall"), "inception_score": ("is",),
}  # fmt: skip
"""Image metric → kinds of the distances that it gives."""
HELD_OUT_KINDS: Mapping[Analysis, Sequence[str]] = {
    "loss": (VALIDATION_LOSS,), "difficulty": (*DIFFICULTY, *CALIBRATION), "context": CONTEXT,
}  # fmt: skip
DRAWN = (CostName.NFE, CostName.FORWARD_PASSES, CostName.FLOPS, CostName.SAMPLING_SECONDS)


@dataclass
class Carried:
    """What a migration did."""

    cells: int = 0
    there: int = 0
    """Cells that were known already."""
    trainings: int = 0
    refused: list[str] = field(default_factory=list)
    """A sentence for each result that is measured again."""


@dataclass(frozen=True)
class OldCell:
    """A result of then, checked and named as it is today."""

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
    """The evaluation's, where it lies in a storage."""


@cache
def _detector(name: str) -> Detector | None:
    try:
        return load_detector(name)
    except (DetectorError, ValueError):  # its weights are a file that is not named here
        return None


def _preprocessing(name: str, sha256: str) -> str:
    """What a detector of then does to an image. RecordError where it is not the one that is here."""
    if name == "inception":
        return InceptionDetector.preprocessing
    found = None if ":" in name else _detector(name)
    if found is None or found.sha256 != sha256:
        raise RecordError(f"detector {name} ({sha256[:12]}) is not at hand, so its features cannot be named")
    return found.preprocessing


def inputs_of_then(experiment: Experiment, metrics: Mapping[str, float], hashes: Mapping[str, str]) -> Inputs:
    """What a result read, from its own record: no data set need be at hand."""
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
    """A line of records of then. RecordError where its old names are not those of its parameters."""
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
    """A picture that a line names: a name in it is not a path, so only `pictures/DIGITS/samples.png` is followed."""
    for name in names:
        parts = name.split("/")
        if len(parts) == 3 and parts[2] == "samples.png" and all(re.fullmatch(r"[\w-]+", part) for part in parts[:2]):
            path = folder / name
            if path.is_file() and not path.is_symlink():
                return path
    return None


def put_cell(cell: OldCell, ledger: Ledger, origin: str, tensors: str | None = None) -> str:
    """The records of a result of then; the hash of its weights.

    Args:
        tensors: where the weights are at hand; else they get a name of their own, equal for cells of one training run.
    """
    metrics, parts = cell.metrics, cell.parts
    spent = float(metrics.get(CostName.TRAINING_SECONDS, math.nan))
    known = ledger.get(parts.weights)
    if tensors is None:
        tensors = digest("migrated weights", [parts.weights.digest, repr(spent), cell.provenance.get("device", "")])
    if known is None:
        # Devices of then: the same for training and evaluation.
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
            f"{cell.sweep}: {cell.label}: is of another run of its training than what is known; measured again"
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
            content = cell.picture.read_bytes()
            files["samples.png"] = hashlib.sha256(content).hexdigest()
            ledger.put_file(content, files["samples.png"])
    ledger.put(Record.of(
        part, values=dict(values), files=files, started=cell.started, finished=cell.finished, origin=origin,
        cost=cost.plain(), provenance=dict(cell.provenance),
    ))  # fmt: skip


def values_by_part(
    request: Request, weights: str, metrics: Mapping[str, float]
) -> list[tuple[Part, dict[str, float]]]:  # fmt: skip
    """The numbers of a row, by the parts that they belong to; what its drawing has cost is the last."""
    found: list[tuple[Part, dict[str, float]]] = []
    for metric, part in request.image_parts(weights).items():
        distances = (MetricName(kind, request.detector["name"]) for kind in KINDS_OF[metric])
        names = [str(name.with_beside(beside)) for name in distances for beside in (None, *BESIDE)]
        found.append((part, {name: metrics[name] for name in names if name in metrics}))
    known = read_names(metrics)
    for (analysis, time), part in request.held_out_parts(weights).items():
        kinds, t = HELD_OUT_KINDS[analysis], None if analysis == "loss" else float(time)
        own = [text for text, name in known.items() if name.kind in kinds and t in (None, name.t)]
        found.append((part, {name: metrics[name] for name in own}))
    return [*found, (request.drawn(weights), {name: metrics[name] for name in DRAWN if name in metrics})]


def carry_lines(path: Path, storage: Storage, say: Say, progress: Callable[[int], None] = lambda done: None) -> Carried:
    """Take the lines of a file into a storage, with the sweeps that they are of."""
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
    """A storage in a folder that has the records of these files, of this version or of commit 0641df2. For notebooks,
    and for a look."""
    storage = Storage.open(folder)
    take_in(files, storage, warnings.warn)
    return storage


def take_in(files: Iterable[Path], storage: Storage, say: Callable[[str], None]) -> None:
    """Add the records of files, of this version or of commit 0641df2, to a storage."""
    for path in files:
        if exchange.is_old(path):
            carry_lines(path, storage, say)
        else:
            exchange.import_lines(storage, path, say)


def entry_of(cell: OldCell) -> CellEntry:
    """A result of then as a cell of its sweep."""
    return CellEntry.of(cell.label, cell.parts, flat_params(cell.experiment), cell.experiment.seed)


def keep_sweeps(entries: Mapping[str, Sequence[CellEntry]], storage: Storage, origin: str) -> None:
    """Write down which cells the sweeps of then had. A name that no sweep can have becomes one."""
    for name, cells in entries.items():
        several = list({cell.cell: cell for cell in cells}.values())
        own = re.sub(r"[^\w.-]", "_", name)[:200]
        own = own if own.strip(".") else f"sweep{own}"
        identity = digest("migrated sweep", [own, origin, sorted(cell.cell for cell in several)])
        SweepEntry(own, identity, several, command=f"pforce records migrate {origin}").write(storage)


# --- the storage of then -----------------------------------------------------------------------------------------


def _old_meta(path: Path) -> dict[str, Any]:
    """A checkpoint's entries of then. RecordError where its tensors are not those that it names."""
    meta = json.loads(read_small(path / "meta.json", 64 << 20))
    if not isinstance(meta, dict) or sha256_of(path / "state.safetensors") != meta.get("sha256"):
        raise RecordError(f"{path}: its tensors are not those that its meta.json names")
    return meta


def carry_storage(
    storage: Storage,
    say: Say,
    known: Mapping[str, Mapping[str, str]],
    progress: Callable[[str], None] = lambda what: None,
) -> Carried:
    """Carry the trainings and evaluations over that commit 0641df2 left in a storage's folder; nothing is removed.

    Args:
        known: old fingerprint → what the tracking store says of it: sweep, name, precision, device.
    """
    carried, ledger = Carried(), Ledger(storage, say)
    entries: dict[str, list[CellEntry]] = {}
    old = storage.root / OLD_TRIALS
    for folder in sorted(old.glob("*/")) if old.is_dir() else []:
        progress(folder.name)
        try:
            plain = json.loads(read_small(folder / "experiment.json", 4 << 20))
            steps = _whole_checkpoints(folder, carried)
            if not steps:
                carried.refused.append(f"{folder}: holds no whole checkpoint; trained again")
                continue
            data = str(steps[-1][1]["stream"]["manifest"])
            if legacy.training_fingerprint(plain, data) != folder.name:
                carried.refused.append(f"{folder}: is not named by its experiment, so it is refused; trained again")
                continue
            cells = _old_cells(folder, plain, data, known, carried)
            experiment = _resolved(legacy.experiment_of(plain), known, folder)
        except (*NOT_WELL_FORMED, OSError, RecordError) as error:
            carried.refused.append(f"{folder}: cannot be carried over ({error}); trained again")
            continue
        training = cell_parts(experiment, Inputs(data, 0, 0, "", "", "")).training
        for cell in cells:
            training = cell.parts.training
        target = storage.root / training_folder(training.digest)
        for path, meta in steps:
            whole = meta["images_seen"] == experiment.training.images
            place = snapshot_path(target, meta["images_seen"]) if whole else checkpoint_path(target, meta["step"])
            _carry_checkpoint(path, meta, place, training.digest)
        write_segment(target, _curve(steps[-1][1]))
        write_json(target / "experiment.json", to_dict(experiment))
        carried.trainings += 1
        tensors = _tensors(steps, experiment)
        for cell in cells:
            if _carry_cell(cell, target, tensors, ledger, carried):
                entries.setdefault(cell.sweep, []).append(entry_of(cell))
    keep_sweeps(entries, storage, "of commit 0641df2")
    return carried


def _carry_cell(
    cell: OldCell, target: Path, tensors: str | None, ledger: Ledger, carried: Carried
) -> bool:  # fmt: skip
    try:
        put_cell(cell, ledger, "commit 0641df2", tensors)
    except RecordError as error:
        carried.refused.append(str(error))
        return False
    carried.cells += 1
    own = target / "evaluations" / cell.parts.digest
    own.mkdir(parents=True, exist_ok=True)
    write_json(own / "experiment.json", to_dict(cell.experiment))
    for name in ("samples.png", "uncertainty_maps.npz", "uncertainty_maps.png"):
        if cell.folder is not None and (cell.folder / name).is_file():
            _link(cell.folder / name, own / name)
    return True


def _whole_checkpoints(folder: Path, carried: Carried) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in sorted((folder / "checkpoints").glob("step_*")):
        try:
            found.append((path, _old_meta(path)))
        except (OSError, ValueError, RecordError) as error:
            carried.refused.append(f"{path}: passed over, as it is damaged ({error})")
    return found


def _resolved(experiment: Experiment, known: Mapping[str, Mapping[str, str]], folder: Path) -> Experiment:
    if experiment.training.precision != "auto":
        return experiment
    of_cells = {known[path.name]["precision"] for path in folder.glob("evaluations/*/") if path.name in known
                and known[path.name].get("precision")}  # fmt: skip
    precision: Literal["bfloat16", "float32"] = "bfloat16" if of_cells == {"bfloat16"} else "float32"
    return replace(experiment, training=replace(experiment.training, precision=precision))


def _hashes(of: Mapping[str, Any], data: str) -> dict[str, str]:
    """What an old name holds besides the experiment."""
    name, reference = of["evaluation"]["detector"], of["evaluation"]["reference"]
    detector = _detector(name) if ":" not in name else None
    if detector is None:
        raise RecordError(f"its detector {name} is not at hand")
    hashes = {"data": data, "detector": detector.sha256}
    return hashes if not reference.endswith(".npz") else {**hashes, "reference": sha256_of(Path(reference))}


def _check_name(name: str, of: Mapping[str, Any], hashes: Mapping[str, str], result: Mapping[str, Any]) -> None:
    if legacy.fingerprint(of, hashes) != name or result.get("fingerprint") != name:
        raise RecordError("its name is not that of its experiment")


def _old_cells(
    folder: Path, plain: Mapping[str, Any], data: str, known: Mapping[str, Mapping[str, str]], carried: Carried
) -> list[OldCell]:
    cells = []
    for own in sorted(folder.glob("evaluations/*/")):
        about = known.get(own.name, {})
        try:
            result = json.loads(read_small(own / "result.json", 16 << 20))
            of = json.loads(read_small(own / "experiment.json", 4 << 20))
            metrics = {
                name: float(value) for name, value in result["metrics"].items()
                if isinstance(value, int | float) and math.isfinite(value)
            }  # fmt: skip
            hashes = _hashes(of, data)
            _check_name(own.name, of, hashes, result)
            experiment = _resolved(legacy.experiment_of(of), known, folder)
            parts = cell_parts(experiment, inputs_of_then(experiment, metrics, hashes))
        except FileNotFoundError:
            continue  # an evaluation that was never finished
        except (*NOT_WELL_FORMED, OSError, RecordError) as error:
            carried.refused.append(f"{own}: cannot be carried over ({error}); measured again")
            continue
        finished = (own / "result.json").stat().st_mtime
        made = {"old": own.name, **{key: about[key] for key in ("device", "precision") if about.get(key)}}
        spent = float(metrics.get(CostName.SECONDS, 0.0))
        cells.append(OldCell(
            about.get("sweep", "migrated"), about.get("name", f"{experiment.name} seed={experiment.seed}"), experiment,
            parts, metrics, finished - spent, finished, made, folder=own,
        ))  # fmt: skip
    return cells


def _tensors(steps: Sequence[tuple[Path, Mapping[str, Any]]], experiment: Experiment) -> str | None:
    """The hash of the finished training's averaged weights; None where it is not finished."""
    path, meta = steps[-1]
    if meta.get("images_seen") != experiment.training.images:
        return None
    try:
        tensors = load_file(path / "state.safetensors")
        named = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
        return content_hash(filled(experiment.model, named))
    except (SafetensorError, WeightsError, OSError):
        return None


def _carry_checkpoint(path: Path, meta: Mapping[str, Any], target: Path, identity: str) -> None:
    """Carry a checkpoint's tensors to their training's name of today: linked, not copied, where the file system can."""
    if (target / "meta.json").exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    _link(path / "state.safetensors", target / "state.safetensors")
    record = {
        **meta, "format": FORMAT, "identity": identity, "resumable": True, "keep": False, "curve": [],
        "window": {"rows": [], "seconds": 0.0}, "device_seconds": meta.get("device_seconds", meta["seconds"]),
        "files": {STATE: meta["sha256"]},
    }  # fmt: skip
    write_json(target / "meta.json", {**record, CHECKSUM: checksum(record)})


def _curve(meta: Mapping[str, Any]) -> list[Point]:
    """The points that a checkpoint of then held: the last 300."""
    return [Point(*point) for point in meta.get("curve", [])]


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        target.write_bytes(source.read_bytes())
