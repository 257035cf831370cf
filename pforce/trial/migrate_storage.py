"""Migration of the trainings and results in a storage of commit 0641df2."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from pforce.base.files import read_small, read_whole, sha256_of, write_bytes, write_json
from pforce.config import Experiment, to_dict
from pforce.metrics.names import (
    CostName,
)
from pforce.models.weights import WeightsError, filled
from pforce.records import legacy
from pforce.records.ledger import Ledger
from pforce.records.legacy import NOT_WELL_FORMED
from pforce.records.parts import Inputs, cell_parts
from pforce.records.record import RecordError
from pforce.records.sweeps import CellEntry
from pforce.storage import Storage
from pforce.training.checkpoint import CHECKSUM, FORMAT, STATE, checkpoint_path, checksum, snapshot_path
from pforce.training.curve import write_segment
from pforce.training.window import Record as Point
from pforce.trial.folder import training_folder
from pforce.trial.migrate import Carried, OldCell, Say, entry_of, inputs_of_then, keep_sweeps, known_detector, put_cell
from pforce.trial.source import content_hash

OLD_TRIALS = "trials"


def _old_meta(path: Path) -> dict[str, Any]:
    """The entries of an old checkpoint. RecordError where its tensors are not those that it names."""
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
    """Migrate the trainings and evaluations of commit 0641df2 in a storage's folder; nothing is removed.

    Args:
        known: old fingerprint → sweep, name, precision and device from the tracking store.
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
            carried.refused.append(f"{path}: skipped, as it is damaged ({error})")
    return found


def _resolved(experiment: Experiment, known: Mapping[str, Mapping[str, str]], folder: Path) -> Experiment:
    if experiment.training.precision != "auto":
        return experiment
    of_cells = {known[path.name]["precision"] for path in folder.glob("evaluations/*/") if path.name in known
                and known[path.name].get("precision")}  # fmt: skip
    precision: Literal["bfloat16", "float32"] = "bfloat16" if of_cells == {"bfloat16"} else "float32"
    return replace(experiment, training=replace(experiment.training, precision=precision))


def _hashes(of: Mapping[str, Any], data: str) -> dict[str, str]:
    """Hashes that an old name includes besides the experiment."""
    name, reference = of["evaluation"]["detector"], of["evaluation"]["reference"]
    detector = known_detector(name) if ":" not in name else None
    if detector is None:
        raise RecordError(f"its detector {name} is not available")
    hashes = {"data": data, "detector": detector.sha256}
    return hashes if not reference.endswith(".npz") else {**hashes, "reference": sha256_of(Path(reference))}


def _check_name(name: str, of: Mapping[str, Any], hashes: Mapping[str, str], result: Mapping[str, Any]) -> None:
    if legacy.fingerprint(of, hashes) != name or result.get("fingerprint") != name:
        raise RecordError("its name does not match its experiment")


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
    """Hash of the finished training's averaged weights; None where it is not finished or cannot be read."""
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
    """Put a checkpoint's tensors into the folder of their training's present name: linked, not copied, where
    possible."""
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
    """The points that an old checkpoint held: the last 300."""
    return [Point(*point) for point in meta.get("curve", [])]


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        write_bytes(target, read_whole(source))
