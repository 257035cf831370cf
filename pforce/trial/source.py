"""Sources of trained models: a training's folder, a checkpoint, a pforce model file, or a published checkpoint."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pforce.base.errors import InputError, UnknownName
from pforce.base.files import read_whole
from pforce.base.foreign import parse_object
from pforce.config import EXPERIMENTS, Experiment, from_dict, to_dict
from pforce.models import PatchForcingTransformer, load_model, load_published, save_model
from pforce.models.config import ModelConfig
from pforce.models.weights import WeightsError, filled
from pforce.records.identity import TABLE, canonical
from pforce.training import checkpoint
from pforce.training.checkpoint import CHECKPOINTS, SNAPSHOTS, CheckpointError, saved, snapshot_path
from pforce.trial.folder import EVALUATIONS, EXPERIMENT

PUBLISHED_SUFFIXES = (".ckpt", ".pt", ".pth")

CONTENT_KEYS = (
    "depth", "width", "heads", "patch", "image_size", "channels", "classes", "difficulty_head", "class_dropout",
    "mlp_ratio",
)  # fmt: skip
"""Keys of the configuration that enter every content hash."""

Weights = Literal["ema", "raw"]


class SourceError(InputError, ValueError):
    """No model can be read from a path. The message gives the path, the reason and the remedy."""


@dataclass(frozen=True)
class Source:
    """A trained model and its description."""

    path: Path
    """Path from which it was read: a file, or a checkpoint's folder."""
    kind: str
    """Kind of the source: checkpoint, model file or published."""
    model: PatchForcingTransformer
    """The model, on the CPU, in eval mode, float32."""
    sha256: str
    """SHA-256 of configuration and weights: two sources with the same hash draw the same images."""
    weights: str
    """Kind of weights: ema, raw, or unknown (foreign files do not state it)."""
    images_seen: int | None = None
    """Images seen in training; None where the file does not state it."""
    experiment: Experiment | None = None
    """Experiment that trained it; None for files that do not hold it."""

    def about(self) -> dict[str, str | int | None]:
        """Description of the source as a flat record."""
        return {
            "source": str(self.path),
            "kind": self.kind,
            "weights": self.weights,
            "images_seen": self.images_seen,
            "experiment": self.experiment.name if self.experiment else None,
            "sha256": self.sha256,
        }


def content_hash(model: PatchForcingTransformer) -> str:
    """SHA-256 of a model's configuration and weights, wherever it was read from: the name of its weights."""
    return tensors_hash(model.config, model.state_dict())


def tensors_hash(of: ModelConfig, tensors: Mapping[str, Tensor]) -> str:
    """`content_hash` of a model that is not built.

    Fields added to the configuration later enter only where they are not at their defaults, so that no name changes.
    """
    keys = TABLE[ModelConfig].keys.items()
    config = {key: getattr(of, attribute) for attribute, key in keys if key in CONTENT_KEYS}
    config |= {key: value for key, value in canonical(of).items() if key not in CONTENT_KEYS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _parsed(text: str, where: Path) -> Experiment:
    """An experiment from its JSON. ValueError where it is damaged or another version's; SourceError where a part of it
    is of a package that is not installed."""
    try:
        return from_dict(parse_object(text))
    except UnknownName as error:
        raise SourceError(
            f"{where}: its {error.part} {error.name} is not installed here: install the package that it comes from; "
            f"the package names its modules by an entry point {EXPERIMENTS}"
        ) from error


def _experiment(record: Path) -> Experiment:
    try:
        return _parsed(read_whole(record).decode(), record)
    except SourceError:
        raise
    except (OSError, ValueError) as error:  # includes ConfigError for another version's fields
        raise SourceError(
            f"{record} cannot be read ({error}), so its model is unknown: call the sweep that trained it again, or "
            "copy the experiment.json of a trial of the same model"
        ) from error


def _from_checkpoint(folder: Path, weights: Weights, record: Path | None = None) -> Source:
    """The model in the folder of a checkpoint or snapshot; the experiment is in `record`, or in the training's
    folder."""
    experiment = _experiment(record or folder.parent.parent / EXPERIMENT)
    try:
        tensors, meta = checkpoint.load(folder)
        prefix = "ema/" if weights == "ema" else "model/"
        named = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        model = filled(experiment.model, named)
    except (CheckpointError, WeightsError) as error:
        raise SourceError(f"{folder}: {error}") from error
    return Source(folder, "checkpoint", model, content_hash(model), weights, meta["images_seen"], experiment)


def _newest(paths: Sequence[Path], weights: Weights) -> Source:
    """The model in the readable checkpoint or snapshot with the most images seen."""
    seen, problems = [], []
    for path in paths:
        try:
            seen.append((checkpoint.read_meta(path)["images_seen"], path.parent.name, path))
        except CheckpointError as error:
            problems.append(str(error))
    for _, _, path in sorted(seen, reverse=True):
        try:
            found = _from_checkpoint(path, weights)
        except SourceError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"damaged checkpoint skipped: {problem}", stacklevel=3)
        return found
    raise SourceError("; ".join(dict.fromkeys(problems)))  # all of a training have one experiment


def _without_paths(experiment: Experiment) -> Experiment:
    """The experiment of a file that travels, without the places of another machine."""
    reference = experiment.evaluation.reference
    evaluation = replace(
        experiment.evaluation, detector_weights=None, further_detectors=(),
        reference=reference if reference in ("validation", "train") else "validation",
    )  # fmt: skip
    data = experiment.data if experiment.data.name == "shards" else replace(experiment.data, path=None)
    return replace(experiment, data=data, evaluation=evaluation)


def write_source(source: Source, path: Path) -> None:
    """Write a model as one pforce model file (`.safetensors`), with its kind of weights, images seen and experiment."""
    about: dict[str, object] = {"weights": source.weights, "images_seen": source.images_seen}
    if source.experiment is not None:
        about["experiment_json"] = json.dumps(to_dict(source.experiment))
    save_model(source.model, path, about=about)


def _optional(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else None


def load_source(path: str | Path, *, weights: Weights = "ema", heads: int | None = None) -> Source:
    """Read a model.

    Args:
        path: a training's folder, or its `checkpoints` or `snapshots` (the newest, by images seen, is taken), the
            folder of one of its evaluations (the measured snapshot is taken), the folder of one checkpoint, `step_…`,
            or snapshot, a pforce model file (`.safetensors`), or a published checkpoint (`.ckpt`, `.pt`, `.pth`).
        weights: averaged or raw weights of a checkpoint; other files hold one set.
        heads: attention heads of an original SiT of unusual size.

    Raises:
        SourceError: there is no model that can be read.
        PublishedError, ModelFileError: the file is refused or damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = path.absolute()
        if (path / checkpoint.META).exists() or path.name.startswith("step_"):
            return _from_checkpoint(path, weights)
        if path.parent.name == EVALUATIONS:
            training, record = path.parent.parent, path / EXPERIMENT
            return _from_checkpoint(snapshot_path(training, _experiment(record).training.images), weights, record)
        paths = saved(path.parent if path.name in (CHECKPOINTS, SNAPSHOTS) else path)
        if path.name in (CHECKPOINTS, SNAPSHOTS):
            paths = [each for each in paths if each.parent == path]
        if not paths:
            raise SourceError(f"{path}: holds no checkpoint (step_…) and no snapshot yet")
        return _newest(paths, weights)
    if path.suffix == ".safetensors":
        model, about = load_model(path)
        told = _optional(about.get("weights"), str) or "unknown"
        images = _optional(about.get("images_seen"), int)
        text = _optional(about.get("experiment_json"), str)
        try:
            experiment = _without_paths(_parsed(text, path)) if text else None
        except SourceError:
            raise
        except ValueError as error:
            raise SourceError(f"{path}: the experiment in it cannot be read ({error})") from error
        return Source(path.absolute(), "model file", model, content_hash(model), told, images, experiment)
    if path.suffix in PUBLISHED_SUFFIXES:
        model = load_published(path, heads=heads)
        return Source(path.absolute(), "published", model, content_hash(model), "unknown")
    found = "does not exist" if not path.exists() else "is not a folder, .safetensors, .ckpt, .pt or .pth file"
    raise SourceError(f"{path}: {found}")
