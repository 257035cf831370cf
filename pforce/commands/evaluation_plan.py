"""What `pforce evaluate` is asked for, found and checked: nothing is drawn or read through a detector in here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from pforce import catalog
from pforce.commands.sampler_arguments import SamplerArguments, sampler_config
from pforce.config import Experiment
from pforce.data import Batch, Manifest, ensure, read_split
from pforce.evaluation import FeatureJob
from pforce.files import folder_hash
from pforce.generation import decoder_for
from pforce.metrics.analyses import Analysis
from pforce.metrics.detectors import Detector, load_detector
from pforce.metrics.distances import IMAGE_METRICS, ImageMetric
from pforce.metrics.evaluate import classes_of
from pforce.metrics.image_sets import ImageSet, ImageTensor, open_images
from pforce.metrics.reference import (
    BATCH,
    ReferenceStatistics,
    cached_reference,
    is_statistics,
    load_statistics,
    reference_key,
)
from pforce.orchestration.evaluation import Evaluation
from pforce.orchestration.find import find_source
from pforce.references import SplitImages
from pforce.sampling import check_sampler
from pforce.sources import EVALUATIONS, EXPERIMENT, PUBLISHED_SUFFIXES, Source, load_source
from pforce.storage import Storage, default_storage
from pforce.validation import ConfigError, require

Measured = Literal["images", "loss", "difficulty", "context"]
MODEL_SUFFIXES = (*PUBLISHED_SUFFIXES, ".safetensors")
Told = Callable[[int], None]
OF_IMAGES = (
    "target", "metrics", "data", "reference", "detector", "detector_weights", "detector_sha256", "extrapolate",
    "held_out", "out", "save_reference", "storage", "tracking_uri", "again",
)  # fmt: skip
"""Options that apply to given images; the others are of models."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplerArguments):
    """Measure a trained model, a folder of images, or an npz of images.

    Images are compared with a reference in the features of a detector: Fréchet distance (FID with the detector
    inception), kernel distance, precision and recall, each with its 95 % interval over images. A model is also asked
    what its difficulty head is worth: R(t), calibration, and what context does. Results go to MLflow, to a table, and
    with figures to a folder. What was measured before is shown again; a stopped call goes on where it was.
    """

    target: Annotated[str, tyro.conf.Positional]
    """A model (a trial's folder or checkpoint, a .safetensors or published .ckpt file, an MLflow run id, an experiment
    that was trained, best:SWEEP such as best:ltg_grid), a folder of images, or an .npz of images (uint8 NHWC arr_0)."""
    measure: tuple[Measured, ...] = ()
    """What is measured of a model: images, loss (validation loss), difficulty (R(t), calibration), context (the two
    context ablations). Default: images, loss and, of a model with a difficulty head, difficulty."""
    metrics: tuple[ImageMetric, ...] = ()
    """Of images: frechet (with sFID for inception), kernel, precision_recall, inception_score. Default: the first
    three, and with inception all."""
    data: str | None = None
    """Experiment whose data set gives held-out images, classes and reference. Default: the model's own."""
    reference: str = "validation"
    """validation or train images of the data set, a folder or .npz of images, or an .npz of stored statistics (mu,
    sigma, mu_s, sigma_s) as ADM publishes them."""
    detector: str | None = None
    """openmoji, fashion-mnist, inception, dinov2, or package.module:function. Default: the experiment's."""
    detector_weights: Path | None = None
    """File with the weights of inception or dinov2; nothing is downloaded."""
    detector_sha256: str | None = None
    """Hash of that file, or its first digits. Default for inception: that of the official weights."""
    extrapolate: bool = False
    """Also the Fréchet distance extrapolated to endless images (FID∞)."""
    images: int = 1000
    """Images that are drawn of a model."""
    held_out: int = 1000
    """Held-out images for loss, difficulty, context and the reference `validation`; all where there are fewer."""
    seed: int = 0
    """Image i starts from the noise of (seed, i), whatever the number of workers."""
    batch: int = BATCH
    """Images a forward pass."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged or raw weights, of a checkpoint of pforce."""
    heads: int | None = None
    """Attention heads of an original SiT of unusual size."""
    decoder: Path | None = None
    """For models of latents: folder of the autoencoder, in diffusers' format (extra `latents`)."""
    workers: int = 1
    """1 draws in this process; more are Ray workers, which share the cores or have a GPU each. Changes no number."""
    ray_address: str | None = None
    """Ray cluster; by default RAY_ADDRESS, else one is started here when workers > 1."""
    out: Path | None = None
    """Folder of figures and evaluation.json. Default: evaluations/FINGERPRINT below the storage."""
    save_reference: Path | None = None
    """Also write the reference's statistics to this .npz (mu, sigma, mu_s, sigma_s, named as in ADM's files), which
    --reference reads."""
    storage: str = field(default_factory=default_storage)
    """Where sweeps leave their files, and evaluations theirs: a folder, or a bucket (s3://BUCKET/PREFIX, gs://…).
    Default: $PFORCE_STORAGE, else runs."""
    tracking_uri: str | None = None
    """MLflow store; by default the database in the storage folder. A bucket needs one."""
    again: bool = False
    """Measure again what is recorded already; images are drawn anew, too."""


def is_model(target: str) -> bool:
    """Whether a target is a model, and not a folder or a file of images."""
    path = Path(target)
    if not path.exists():
        return True  # a run, a sweep, or nothing: find_source says so
    if path.is_dir():
        if path.absolute().parent.name == EVALUATIONS and (path / EXPERIMENT).exists():
            return True
        return path.name.startswith("step_") or (path / "checkpoints").is_dir() or any(path.glob("step_*"))
    return path.suffix in MODEL_SUFFIXES


def _experiment(a: Arguments, source: Source | None) -> Experiment | None:
    if a.data is not None:
        return catalog.experiment(a.data)
    return source.experiment if source is not None else None


@dataclass(frozen=True)
class _Data:
    """The data set that an evaluation reads of."""

    folder: Path
    manifest: Manifest
    held_out: Batch


def _data(a: Arguments, experiment: Experiment | None, console: Console) -> _Data | None:
    if experiment is None:
        return None
    folder = ensure(experiment.data, progress=console.is_terminal).absolute()
    manifest = Manifest.load(folder)
    held_out = read_split(folder, "validation", limit=min(a.held_out, manifest.validation.samples))
    return _Data(folder, manifest, held_out)


def _detector(a: Arguments, experiment: Experiment | None) -> tuple[Detector, str, str | None]:
    """The detector, what it was asked for by, and its file of weights."""
    name = a.detector or (experiment.evaluation.detector if experiment else None)
    if a.detector is None and a.data is None and name is not None and ":" in name:
        raise ConfigError(
            f"detector = {name}: comes from the model's file, and naming a function runs it; give --detector {name} if "
            "you trust it"
        )
    if name is None:
        raise ConfigError(
            "detector: not given, and no data set suggests one: --detector openmoji, fashion-mnist, inception (with "
            "--detector-weights), dinov2 or package.module:function"
        )
    weights = a.detector_weights or (experiment.evaluation.detector_weights if experiment and not a.detector else None)
    return load_detector(name, weights, a.detector_sha256), name, str(Path(weights).absolute()) if weights else None


@dataclass(frozen=True)
class _Reference:
    """A reference before it is read."""

    make: Callable[[torch.device, Told], ReferenceStatistics]
    images: int
    size: tuple[int, int] | None
    identity: str


def _reference(a: Arguments, data: _Data | None, detector: Detector) -> _Reference:
    """Where the reference comes from; errors of the file before anything is drawn."""
    cache = Storage.open(a.storage).root / "references"
    if a.reference in ("validation", "train"):
        if data is None:
            raise ConfigError(
                f"reference = {a.reference}: no data set is known; name one with --data, such as openmoji32_micro, or "
                "give --reference a folder or .npz of images, or an .npz of statistics"
            )
        split = data.manifest.split("train" if a.reference == "train" else "validation")
        images: ImageSet
        if a.reference == "train" or split.samples == len(data.held_out.images):
            images = SplitImages(data.folder, "train" if a.reference == "train" else "validation")
        else:
            images = ImageTensor(data.held_out.images)
        return _image_reference(images, detector, cache, f"{a.reference} images of {data.folder.name}")
    path = Path(a.reference)
    if path.suffix == ".npz" and is_statistics(path):
        found = load_statistics(path, detector, images=False)

        def make(device: torch.device, told: Told) -> ReferenceStatistics:
            return load_statistics(path, detector.to(device), device=device, progress=told)

        return _Reference(make, found.moments.n or 0, None, found.identity)
    return _image_reference(open_images(path), detector, cache, str(path))


def _image_reference(images: ImageSet, detector: Detector, cache: Path, source: str) -> _Reference:
    content = images.content_hash()

    def make(device: torch.device, told: Told) -> ReferenceStatistics:
        on = detector.to(device)
        return cached_reference(images, on, cache, source=source, content=content, device=device, progress=told)

    return _Reference(make, len(images), images.size, reference_key(content, detector))


def _metrics(a: Arguments, detector: Detector) -> tuple[ImageMetric, ...]:
    if a.metrics:
        return a.metrics
    return IMAGE_METRICS if detector.name == "inception" else ("frechet", "kernel", "precision_recall")


def _check_sizes(reference: _Reference, size: tuple[int, int] | None, detector: Detector) -> None:
    """Images of two sizes are not compared: resizing one of them is part of what would be measured."""
    if size is not None and reference.size is not None and size != reference.size:
        raise ConfigError(
            f"images of {size[1]}×{size[0]} pixels, the reference has {reference.size[1]}×{reference.size[0]}: "
            "distances need one size; resize the images, or give a reference of theirs"
        )
    smallest = min(size or reference.size or (detector.minimum_size,))
    if smallest < detector.minimum_size:
        raise ConfigError(
            f"images of {smallest} pixels: the detector {detector.name} takes at least {detector.minimum_size}"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _common_record(a: Arguments, detector: Detector, reference: _Reference) -> dict[str, Any]:
    return {
        "detector": detector.name,
        "detector_sha256": detector.sha256,
        "preprocessing": detector.preprocessing,
        "reference": a.reference,
        "reference_identity": reference.identity,
        "metrics": sorted(_metrics(a, detector)),
        "extrapolate": a.extrapolate,
    }


def plan_images(a: Arguments, console: Console) -> Evaluation:
    """The evaluation of a folder or an npz of images, checked."""
    experiment = _experiment(a, None)
    images = open_images(a.target)
    for option in fields(Arguments):
        if option.name not in OF_IMAGES and getattr(a, option.name) != option.default:
            require(False, option.name, getattr(a, option.name), "left out for images: they are measured as they are")
    detector, _, _ = _detector(a, experiment)
    reference = _reference(a, _data(a, experiment, console), detector)
    _check_sizes(reference, images.size, detector)
    for note in images.notes:
        console.print(f"note: {a.target}: {note}", highlight=False, soft_wrap=True, markup=False)
    record = {
        "target": "images", "source": str(a.target), "sha256": images.content_hash(), "images": len(images),
        **_common_record(a, detector, reference),
    }  # fmt: skip
    return Evaluation(
        Path(a.target).name, detector, _metrics(a, detector), a.extrapolate, reference.make, reference.images, record,
        images=images,
    )  # fmt: skip


def _measured(a: Arguments, source: Source, data: _Data | None) -> tuple[Measured, ...]:
    head = source.model.config.difficulty_head
    if a.measure:
        wrong = [part for part in a.measure if part in ("difficulty", "context") and not head]
        require(not wrong, "measure", ", ".join(wrong), "left out for a SiT: it has no difficulty head")
        require(
            data is not None or set(a.measure) == {"images"},
            "measure",
            ", ".join(a.measure),
            "images only, as no data set with held-out images is known; name one with --data",
        )
        return a.measure
    if data is None or source.model.config.channels != data.manifest.channels:
        return ("images",)  # a model of latents has no held-out latents here
    return ("images", "loss", "difficulty") if head else ("images", "loss")


def plan_model(a: Arguments, console: Console) -> Evaluation:
    """The evaluation of a model, checked."""
    path = find_source(a.target, storage=a.storage, tracking_uri=a.tracking_uri)
    source = load_source(path, weights=a.weights, heads=a.heads)
    experiment = _experiment(a, source)
    data = _data(a, experiment, console)
    config = source.model.config
    if config.channels != 3 and a.decoder is None:
        raise ConfigError(f"{source.path}: samples latents; give their --decoder, so that there are images to measure")
    if data is not None:
        _check_fits(source, data, a)
    measured = _measured(a, source, data)
    sampler = sampler_config(a, source)
    check_sampler(sampler, config)
    require(a.images >= 2, "images", a.images, "≥ 2")
    require(a.workers >= 1, "workers", a.workers, "≥ 1")
    require(a.batch >= 1, "batch", a.batch, "≥ 1")
    detector, detector_name, detector_weights = _detector(a, experiment)
    reference = _reference(a, data, detector)
    record: dict[str, Any] = {"target": "model", **source.about(), "seed": a.seed, "measure": sorted(measured)}
    job = None
    if "images" in measured:
        if a.decoder is not None:
            decoder_for(source, str(a.decoder), torch.device("cpu"))
            record["decoder"] = folder_hash(a.decoder)
        else:
            _check_sizes(reference, config.image_size, detector)
        labels = range(config.classes) if data is None else classes_of(data.held_out.labels, a.images).tolist()
        job = FeatureJob(
            source=str(source.path), sha256=source.sha256, sampler=sampler, classes=tuple(labels), count=a.images,
            seed=a.seed, batch=min(a.batch, a.images), weights=a.weights, heads=a.heads,
            decoder=str(a.decoder.absolute()) if a.decoder else None,
            detector=detector_name,
            detector_weights=detector_weights,
            detector_sha256=detector.sha256,
        )  # fmt: skip
        record |= _flat(sampler.canonical(), "sampler.") | {"images": a.images, "classes": _hash(labels)}
        record |= _common_record(a, detector, reference)
        if sampler.unspent:
            console.print(f"warning: {sampler.unspent}", highlight=False)
    if data is not None and set(measured) != {"images"}:
        record |= {"held_out": len(data.held_out.images), "data_hash": data.manifest.hash}
    analyses: tuple[Analysis, ...] = tuple(part for part in measured if part != "images")
    return Evaluation(
        a.target if not Path(a.target).exists() else Path(a.target).name,
        detector, _metrics(a, detector), a.extrapolate, reference.make, reference.images, record,
        source=source, job=job, analyses=analyses, held_out=data.held_out if data else None,
        classes=data.manifest.classes if data else (), seed=a.seed, batch=a.batch,
    )  # fmt: skip


def _hash(labels: Iterable[int]) -> str:
    return hashlib.sha256(",".join(map(str, labels)).encode()).hexdigest()[:16]


def _check_fits(source: Source, data: _Data, a: Arguments) -> None:
    config, manifest = source.model.config, data.manifest
    if a.decoder is None and (config.channels, config.image_size) != (manifest.channels, (manifest.resolution,) * 2):
        raise ConfigError(
            f"{source.path}: a model of {config.channels} channels and {config.image_size}, where {data.folder.name} "
            f"has {manifest.channels} and {(manifest.resolution,) * 2}; name the right --data"
        )
    if config.classes < len(manifest.classes):
        raise ConfigError(
            f"{source.path}: a model of {config.classes} classes, where {data.folder.name} has {len(manifest.classes)}"
        )
