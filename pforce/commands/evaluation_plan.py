"""Plans of `pforce evaluate`: find and check what is to be measured. Nothing is drawn or passed through a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from pforce import catalog
from pforce.base.errors import ConfigError, DoesNotApply, FieldError, fields_below, require, require_applies
from pforce.base.files import folder_hash
from pforce.commands.options import SamplerOptions, evaluation_settings, given, sampler_of
from pforce.config import Experiment
from pforce.data import Manifest, ensure
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.context import CONTEXT_TIMESTEPS
from pforce.metrics.detectors import Detector, load_detector
from pforce.metrics.difficulty import TIMESTEPS
from pforce.metrics.distances import NEAREST, USUAL, ImageMetric
from pforce.metrics.image_sets import ImageSet, ImageSetError, open_images
from pforce.metrics.reference import BATCH, image_size, is_statistics, load_statistics
from pforce.orchestration.evaluation import Evaluation
from pforce.orchestration.find import find_model
from pforce.orchestration.options import StoreOptions, WorkerOptions
from pforce.records.identity import canonical_sampler
from pforce.records.parts import metric_parts, metrics_of, request_for
from pforce.sampling import check_sampler
from pforce.training.checkpoint import CHECKPOINTS, META, SNAPSHOTS
from pforce.trial.folder import EVALUATIONS, EXPERIMENT
from pforce.trial.jobs import decoder_for
from pforce.trial.measurable import Measurable
from pforce.trial.reference import ReferenceImages, compared_images, inputs_of, reference_images
from pforce.trial.source import PUBLISHED_SUFFIXES, Source

Measured = Literal["images", "loss", "difficulty", "context"]
MODEL_SUFFIXES = (*PUBLISHED_SUFFIXES, ".safetensors")
OF_MODELS = (
    "images", "labels", "label_images", "held_out_images", "difficulty_timesteps", "context_timesteps", "seed", "batch",
)  # fmt: skip
"""Settings of an evaluation that do not apply to given images."""
DEFAULTS = EvaluationConfig(difficulty_timesteps=TIMESTEPS, context_timesteps=CONTEXT_TIMESTEPS, batch=BATCH)
"""Default settings of a model's evaluation."""


def _evaluation_settings() -> type:
    return evaluation_settings(DEFAULTS)


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplerOptions, WorkerOptions, StoreOptions):
    """Measure a trained model, a folder of images, or an npz of images.

    Images are compared with a reference in the features of a detector: Fréchet distance (FID with the detector
    inception), kernel distance, precision and recall, each with its 95 % interval over images. The difficulty head of a
    model is evaluated too: R(t), calibration, and the effect of context. Results go to MLflow, to a table, and with
    figures to a folder. What was measured before is shown again; the same command resumes a stopped evaluation.
    """

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """A model, a folder of images, or an .npz of images (uint8 NHWC arr_0). A model is a trial's folder or checkpoint,
    a .safetensors or published .ckpt file, an MLflow run id, a trained experiment, or best:SWEEP such as
    best:ltg_grid."""
    measure: tuple[Measured, ...] = ()
    """Measurements of a model: images, loss (validation loss), difficulty (R(t), calibration), context (the two context
    ablations). Default: images, loss and, for a model with a difficulty head, difficulty."""
    evaluation: Annotated[Any, tyro.conf.arg(name="evaluation", constructor_factory=_evaluation_settings)] = None
    data: str | None = None
    """Experiment whose data set provides held-out images, classes and reference. Default: the model's own."""
    detector_sha256: str | None = None
    """SHA-256 of the detector's weight file, or its first digits. Default for inception: that of the official
    weights."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged (ema) or raw weights, for a checkpoint of pforce."""
    heads: int | None = None
    """Number of attention heads, for an original SiT of unusual size."""
    decoder: Path | None = None
    """Folder of the autoencoder, in diffusers' format, for models of latents (extra `latents`)."""
    out: Path | None = None
    """Output folder for figures and evaluation.json. Default: evaluations/FINGERPRINT below the storage."""
    save_reference: Path | None = None
    """Also write the reference's statistics to this .npz (mu, sigma, mu_s, sigma_s, named as in ADM's files), for use
    as --evaluation.reference."""
    again: bool = False
    """Measure again what is already recorded, on newly drawn images."""

    @property
    def reference(self) -> str:
        """Reference with which images are compared."""
        return str(given(self.evaluation).get("reference", DEFAULTS.reference))

    @property
    def extrapolate(self) -> bool:
        """Whether FID∞ is requested."""
        return bool(given(self.evaluation).get("extrapolate", DEFAULTS.extrapolate))


def evaluation_of(a: Arguments, detector: Detector, name: str) -> EvaluationConfig:
    """Requested settings, as an experiment states them. FieldError where they are invalid.

    Args:
        name: name by which the detector is found.
    """
    asked = {"metrics": _metrics(a, detector), **given(a.evaluation), "detector": name}
    own = ("validation", "train")
    if asked.get("reference", own[0]) not in own:  # a file or folder, read by `_reference`
        asked.pop("reference")
    asked.pop("detector_weights", None)  # its hash counts instead
    with fields_below("evaluation."):
        return replace(DEFAULTS, **asked)


def is_model(target: str) -> bool:
    """Whether a target is a model, rather than a folder or a file of images."""
    path = Path(target)
    if not path.exists():
        return True  # a run, a sweep, or nothing: `find_model` tells them apart
    if path.is_dir():
        if path.absolute().parent.name == EVALUATIONS and (path / EXPERIMENT).exists():
            return True
        own = path.name.startswith("step_") or path.name in (CHECKPOINTS, SNAPSHOTS) or (path / META).exists()
        return own or any((path / kind).is_dir() for kind in (CHECKPOINTS, SNAPSHOTS))
    return path.suffix in MODEL_SUFFIXES


def _experiment(a: Arguments, source: Source | None) -> Experiment | None:
    if a.data is not None:
        return catalog.experiment(a.data)
    return source.experiment if source is not None else None


@dataclass(frozen=True)
class _Data:
    """The data set that an evaluation reads."""

    folder: Path
    manifest: Manifest


def _data(a: Arguments, experiment: Experiment | None, console: Console) -> _Data | None:
    if experiment is None:
        return None
    from_file = None if a.data is not None else Path(a.target)
    folder = ensure(experiment.data, progress=console.is_interactive, path_from=from_file).absolute()
    return _Data(folder, Manifest.load(folder))


def _detector(a: Arguments, experiment: Experiment | None) -> tuple[Detector, str, str | None]:
    """The detector, the name by which it was requested, and the path of its weight file."""
    asked = given(a.evaluation)
    chosen = asked.get("detector")
    name = chosen or (experiment.evaluation.detector if experiment else None)
    if chosen is None and a.data is None and name is not None and ":" in name:
        raise ConfigError(
            f"evaluation.detector = {name}: comes from the model's file, and loading it would run its code; give "
            f"--evaluation.detector {name} if you trust it"
        )
    if name is None:
        raise ConfigError(
            "evaluation.detector: not given, and no data set suggests one: --evaluation.detector openmoji, "
            "fashion-mnist, inception (with --evaluation.detector-weights), dinov2 or package.module:function"
        )
    weights = asked.get("detector_weights")
    if weights is None and chosen is None and experiment:
        weights = experiment.evaluation.detector_weights
    try:
        detector = load_detector(name, weights, a.detector_sha256)
    except FieldError as error:
        raise (error if error.field == "detector_sha256" else error.below("evaluation.")) from error
    return detector, name, str(Path(weights).absolute()) if weights else None


def _print_notes(images: ImageSet, path: str | Path, console: Console) -> None:
    for note in images.notes:
        console.print(f"note: {path}: {note}", soft_wrap=True)


def _reference(a: Arguments, data: _Data | None, detector: Detector, console: Console) -> ReferenceImages:
    """The reference of the comparison. Errors of its file are raised before anything is drawn."""
    count = given(a.evaluation).get("reference_images")
    if a.reference in ("validation", "train"):
        if data is None:
            raise ConfigError(
                f"evaluation.reference = {a.reference}: no data set is known; name one with --data, such as "
                "openmoji32_micro, or give --evaluation.reference a folder or .npz of images, or an .npz of statistics"
            )
        with fields_below("evaluation."):
            config = EvaluationConfig(reference=a.reference, reference_images=count)
        inputs = inputs_of(config, data.manifest, detector)
        return reference_images(config, data.folder, inputs, data.manifest.resolution)
    why = "to a reference that is a file or folder of its own"
    require_applies(count is None, "evaluation.reference_images", count, why)
    path = Path(a.reference)
    if path.suffix == ".npz" and is_statistics(path):
        found = load_statistics(path, detector, images=False)
        try:
            size = image_size(path)
        except ImageSetError as error:
            raise ImageSetError(f"evaluation.reference = {error}") from error
        return ReferenceImages(
            "statistics", str(path.absolute()), f"file:{found.identity}", found.moments.n or 0, size
        )  # fmt: skip
    try:
        images = open_images(path)
    except ImageSetError as error:
        raise ImageSetError(f"evaluation.reference = {error}") from error
    _print_notes(images, path, console)
    return ReferenceImages(
        "images", str(path.absolute()), f"images:{images.content_hash()}", len(images), images.size
    )  # fmt: skip


def _metrics(a: Arguments, detector: Detector) -> tuple[ImageMetric, ...]:
    asked: tuple[ImageMetric, ...] = given(a.evaluation).get("metrics", ())
    if asked:
        return asked
    return USUAL if detector.name == "inception" else ("frechet", "kernel", "precision_recall")


def _check_sizes(reference: ReferenceImages, size: tuple[int, int] | None, detector: Detector) -> None:
    """Raise ConfigError where image sizes differ (resizing would change what is measured) or are below the smallest."""
    if size is not None and reference.size is not None and size != reference.size:
        raise ConfigError(
            f"images of {size[1]}×{size[0]} pixels, the reference has {reference.size[1]}×{reference.size[0]}: "
            "distances need one size; resize the images, or give a reference of their size"
        )
    smallest = min(size or reference.size or (detector.minimum_size,))
    if smallest < detector.minimum_size:
        raise ConfigError(
            f"images of {smallest} pixels: the detector {detector.name} takes at least {detector.minimum_size}"
        )


def _compared(a: Arguments, data: _Data | None, detector: Detector, size: tuple[int, int] | None) -> dict[str, Any]:
    """The held-out images that memorisation is measured with, as plain data; empty where it is not requested."""
    if NEAREST not in _metrics(a, detector):
        return {}
    return compared_images(data.manifest if data else None, size, DEFAULTS.held_out_images)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _plain(detector: Detector) -> dict[str, str]:
    """A detector as plain data that names results."""
    return {"name": detector.name, "sha256": detector.sha256, "preprocessing": detector.preprocessing}


def _further(
    a: Arguments, first: str, reference: ReferenceImages, size: tuple[int, int] | None
) -> tuple[Detector, ...]:
    """The further detectors. Errors of their files, and of images that are too small, are raised before anything is
    drawn."""
    asked, metrics = (given(a.evaluation).get(name, ()) for name in ("further_detectors", "metrics"))
    stored = reference.path if reference.kind == "statistics" and asked else None
    why = "none with a reference of stored statistics, which are of one detector; give images"
    require(stored is None, "evaluation.further_detectors", ", ".join(asked), why)
    with fields_below("evaluation."):
        further = EvaluationConfig(
            detector=first, further_detectors=asked, metrics=metrics or DEFAULTS.metrics
        ).load_further()  # fmt: skip
    for each in further:
        _check_sizes(reference, size, each)
    return further


def _about(a: Arguments, detector: Detector, reference: ReferenceImages) -> dict[str, Any]:
    """Parameters of the run that images and models share."""
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
    """The checked evaluation of a folder or an npz of images."""
    experiment = _experiment(a, None)
    images = open_images(a.target)
    alone = ("sampler", "decoder", "heads", "executor", "ray_address")
    of_models = {name: getattr(a, name) for name in alone if getattr(a, name) is not None}
    of_models |= {"measure": ", ".join(a.measure)} if a.measure else {}
    of_models |= {"weights": a.weights} if a.weights != "ema" else {}
    of_models |= {"workers": a.workers} if a.workers != 1 else {}
    of_models |= {f"evaluation.{name}": value for name, value in given(a.evaluation).items() if name in OF_MODELS}
    of_models |= {f"sampler.{name}": value for name, value in given(a.settings).items()}
    for name, value in of_models.items():
        raise DoesNotApply(name.replace("guidance_", "guidance."), value, "to images, which are measured as they are")
    detector, detector_name, _ = _detector(a, experiment)
    data = _data(a, experiment, console)
    reference = _reference(a, data, detector, console)
    _check_sizes(reference, images.size, detector)
    held_out = _compared(a, data, detector, images.size)
    _print_notes(images, a.target, console)
    content = images.content_hash()
    further = _further(a, detector_name, reference, images.size)
    parts = metric_parts(
        {"image_set": content, "images": len(images)}, [_plain(each) for each in (detector, *further)],
        metrics_of(_metrics(a, detector), extrapolate=a.extrapolate), reference=reference.identity, held_out=held_out,
    )  # fmt: skip
    about = {"target": "images", "source": str(a.target), "sha256": content, "images": len(images),
             **_about(a, detector, reference)}  # fmt: skip
    return Evaluation(
        Path(a.target).name, detector, reference, about, images=images, image_parts=parts, further=further,
        training=(str(data.folder), held_out["images"]) if data and held_out else None,
    )  # fmt: skip


def _measured(a: Arguments, source: Source, data: _Data | None) -> tuple[Measured, ...]:
    head = source.model.config.difficulty_head
    if a.measure:
        wrong = [part for part in a.measure if part in ("difficulty", "context") and not head]
        require_applies(not wrong, "measure", ", ".join(wrong), "to a SiT, which has no difficulty head")
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
    """The checked evaluation of a model."""
    source = find_model(a.target, storage=a.storage, tracking_uri=a.tracking_uri, weights=a.weights, heads=a.heads)
    experiment = _experiment(a, source)
    data = _data(a, experiment, console)
    config = source.model.config
    if config.channels != 3 and a.decoder is None:
        raise ConfigError(f"{source.path}: samples latents; give their --decoder, so that there are images to measure")
    if data is not None:
        _check_fits(source, data, a)
    measured = _measured(a, source, data)
    sampler = sampler_of(a, source)
    check_sampler(sampler, config)
    detector, detector_name, detector_weights = _detector(a, experiment)
    evaluation = evaluation_of(a, detector, detector_name)
    reference = _reference(a, data, detector, console)
    if "images" in measured:
        _compared(a, data, detector, config.image_size if a.decoder is None else None)
    decoder = None
    if a.decoder is not None and "images" in measured:
        decoder_for(source, str(a.decoder), torch.device("cpu"))
        decoder = folder_hash(a.decoder)
    elif "images" in measured:
        _check_sizes(reference, config.image_size, detector)
    further = _further(a, detector_name, reference, None if decoder else config.image_size)
    inputs = None if data is None else inputs_of(evaluation, data.manifest, detector)
    request = replace(
        request_for(evaluation, inputs, measured, classes=config.classes), sampler=canonical_sampler(sampler),
        decoder=decoder, reference=reference.identity, detector=_plain(detector),
        further=tuple(_plain(each) for each in further),
    )  # fmt: skip
    about: dict[str, Any] = {"target": "model", **source.about(), "seed": evaluation.seed, "measure": sorted(measured)}
    if "images" in measured:
        about |= _flat(sampler.canonical(), "sampler.") | {"images": evaluation.images, "labels": evaluation.labels}
        about |= _about(a, detector, reference)
        if sampler.unspent:
            console.print(f"note: {sampler.unspent}")
    if data is not None and set(measured) != {"images"}:
        about |= {"held_out": request.held_out["images"], "data_hash": data.manifest.hash}
    model = Measurable(
        source=str(source.path), sha256=source.sha256, request=request, evaluation=evaluation, sampler=sampler,
        storage=a.place.uri, reference=reference, data=str(data.folder) if data else None,
        weights=a.weights, heads=a.heads, decoder=str(a.decoder.absolute()) if a.decoder else None,
        detector=detector_name, detector_weights=detector_weights,
    )  # fmt: skip
    return Evaluation(
        a.target if not Path(a.target).exists() else Path(a.target).name,
        detector, reference, about, model=model, source=source, classes=data.manifest.classes if data else (),
        further=further,
    )  # fmt: skip


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
