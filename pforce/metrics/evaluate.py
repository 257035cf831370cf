"""What is measured on a trained model: validation loss, distance of generated images, what its uncertainty is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce import flow, seeding
from pforce.images import from_uint8, to_uint8
from pforce.metrics.calibration import DECILES, Calibration, calibration_of
from pforce.metrics.context import context_helps, context_metrics, context_uncertainty
from pforce.metrics.detectors import Detector, Reading, check_name, load_detector
from pforce.metrics.difficulty import DifficultyCorrelation, correlation_of, patch_errors
from pforce.metrics.distances import IMAGE_METRICS, ImageMetric, distances, interval_names
from pforce.metrics.features import collect, read_padded
from pforce.metrics.image_sets import ImageTensor
from pforce.metrics.reference import ReferenceStatistics, cached_reference
from pforce.models import PatchForcingTransformer
from pforce.parallel import ALONE, Workers
from pforce.sampling import Denoiser, SamplerConfig, count_flops, generate
from pforce.validation import require

GRID_IMAGES = 64
"""Images of the picture of samples."""
MAP_IMAGES = 8
"""Images of the picture of uncertainty."""
SHOWN_TIMESTEPS = (0.2, 0.4, 0.6, 0.8)
"""Of calibration, scatter and maps, where R is measured at more."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, on how many images."""

    images: int = 1000
    """Generated images for the distances: the n that is stated beside them."""
    validation_images: int = 1000
    """Held-out images for losses, correlation and reference features; all of them where there are fewer."""
    detector: str = "openmoji"
    """Feature detector of the distances: openmoji, fashion-mnist, inception, dinov2, or package.module:function."""
    detector_weights: str | None = None
    """File with the weights of inception or dinov2. Not part of the fingerprint: its hash is."""
    metrics: tuple[ImageMetric, ...] = ("frechet",)
    """What is measured on generated images: frechet (with sFID where the detector has spatial features), kernel,
    precision_recall, inception_score."""
    reference: str = "validation"
    """What generated images are compared with: the data set's validation or train images, or a file of stored
    statistics (npz as ADM's evaluator uses). A file is known by its hash."""
    extrapolate: bool = False
    """Also report the Fréchet distance extrapolated to endless images (FID∞)."""
    difficulty_timesteps: tuple[float, ...] = (0.2, 0.6)
    """Timesteps of the difficulty correlation R(t) and of the calibration of σ, in (0, 1)."""
    context_timesteps: tuple[float, ...] = ()
    """Timesteps of the context ablations, in (0, 1); the paper's are 0.1, 0.2, 0.3. None by default: each costs 16
    forward passes of every held-out image."""
    seed: int = 0
    """Seed of the evaluation's noise: the same for all cells and training seeds, so that they share it."""
    batch: int = 64
    """Images a forward pass."""

    def __post_init__(self) -> None:
        require(self.images >= 2, "images", self.images, "≥ 2")
        require(self.validation_images >= 2, "validation_images", self.validation_images, "≥ 2")
        for name in ("difficulty_timesteps", "context_timesteps"):
            timesteps = getattr(self, name)
            require(all(0 < t < 1 for t in timesteps), name, timesteps, "between 0 and 1")
        require(self.batch > 0, "batch", self.batch, "> 0")
        check_name(self.detector)
        require(
            self.reference in ("validation", "train") or self.reference.endswith(".npz"),
            "reference",
            self.reference,
            "validation, train, or an .npz file of statistics",
        )
        require(len(set(self.metrics)) == len(self.metrics) > 0, "metrics", self.metrics, f"some of {IMAGE_METRICS}")

    @property
    def detector_is_foreign(self) -> bool:
        """Whether it is a user's function."""
        return ":" in self.detector

    @property
    def detector_name(self) -> str:
        """What metrics are called by: the detector's name; of package.module:function that of the function."""
        return self.detector.rsplit(":", 1)[-1]

    def load_detector(self) -> Detector:
        """The detector, as `load_detector`."""
        return load_detector(self.detector, self.detector_weights)


class UncertaintyMaps(NamedTuple):
    """Held-out images and what the model expects of their patches."""

    images: NDArray[np.uint8]
    """(≤ 8, C, H, W)."""
    timesteps: NDArray[np.float64]
    """(T,)."""
    sigma: NDArray[np.float32]
    """(T, ≤ 8, h, w) patch means of σ."""


class HeldOut(NamedTuple):
    """What is measured on held-out images."""

    metrics: dict[str, float]
    maps: UncertaintyMaps | None


class TrialEvaluation(NamedTuple):
    """The numbers of a trial under their fixed names, and some of the images."""

    metrics: dict[str, float]
    samples: Tensor
    """(≤ 64, C, H, W) the first generated images."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know."""
    maps: UncertaintyMaps | None = None
    """Of a model with a difficulty head."""


Progress = Callable[[str, float], None]
"""Told the part of the evaluation and the share of all of it that is done."""


@torch.no_grad()
def validation_losses(
    model: PatchForcingTransformer, x1: Tensor, y: Tensor, x0: Tensor, batch: int
) -> dict[str, float]:
    """`val/loss` and its segments over all images."""
    total = torch.zeros(flow.VALIDATION_SEGMENTS, dtype=torch.float64, device=x1.device)
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        total += flow.validation_loss(model, x1[rows], y[rows], x0[rows]) * len(x1[rows])
    segments = (total / len(x1)).tolist()
    named = {f"val/loss_t{t:.4f}": value for t, value in zip(flow.validation_timesteps(), segments, strict=True)}
    return {"val/loss": sum(segments) / len(segments), **named}


def _difficulty(
    model: PatchForcingTransformer, x1: Tensor, y: Tensor, x0: Tensor, config: EvaluationConfig
) -> tuple[dict[str, float], list[NDArray[np.float64]]]:
    """Correlation and calibration of the predicted uncertainty, and maps of it, from the same forward passes."""
    metrics: dict[str, float] = {}
    maps = []
    grid = tuple(size // model.patch for size in x1.shape[-2:])
    shown = shown_timesteps(config.difficulty_timesteps)
    for t in config.difficulty_timesteps:
        errors = patch_errors(model, x1, y, x0, t=t, batch=config.batch)
        metrics |= correlation_metrics(correlation_of(errors))
        if t not in shown:
            continue
        if errors.patches >= DECILES:  # fewer have none, and a finished training must not fail on that
            metrics |= calibration_metrics(calibration_of(errors))
        maps.append(errors.sigma[:MAP_IMAGES].reshape(-1, *grid))
    return metrics, maps


def shown_timesteps(timesteps: Sequence[float]) -> tuple[float, ...]:
    """Those with calibration and maps: all of a few, of many only SHOWN_TIMESTEPS (where they are among them)."""
    chosen = tuple(t for t in timesteps if t in SHOWN_TIMESTEPS)
    return chosen if len(timesteps) > len(SHOWN_TIMESTEPS) and chosen else tuple(timesteps)


def correlation_metrics(r: DifficultyCorrelation) -> dict[str, float]:
    """R at one timestep with its intervals, under their fixed names; no intervals where σ is constant."""
    metrics = {}
    for name, value, interval in (
        ("pearson", r.pearson, r.pearson_interval),
        ("spearman", r.spearman, r.spearman_interval),
    ):
        metrics[f"difficulty/{name}_t{r.t:.2f}"] = value
        if not math.isnan(interval[0]):
            low, high = interval_names(f"difficulty/{name}_t{r.t:.2f}")
            metrics |= {low: interval[0], high: interval[1]}
    return metrics


def calibration_metrics(c: Calibration) -> dict[str, float]:
    """Calibration at one timestep by decile, under its fixed names."""
    metrics = {f"calibration/error_t{c.t:.2f}": c.error}
    for decile, (expected, observed) in enumerate(zip(c.expected, c.observed, strict=True), start=1):
        metrics[f"calibration/expected_t{c.t:.2f}_d{decile}"] = float(expected)
        metrics[f"calibration/observed_t{c.t:.2f}_d{decile}"] = float(observed)
    return metrics


def measure_sampler(
    model: Denoiser,
    sampler: SamplerConfig,
    classes: Tensor,
    reference: ReferenceStatistics,
    detector: Detector,
    *,
    config: EvaluationConfig,
    seed: int,
    device: torch.device,
    progress: Callable[[float], None] = lambda share: None,
) -> TrialEvaluation:
    """Generate an image for each class (M,), and measure their distances and their cost.

    The noise of image i belongs to (seed, i): samplers that are measured with one seed share it. Features are read
    from the images as bytes, as they would be from files.
    """
    drawn = _draw(model, sampler, classes, detector, ALONE, config=config, seed=seed, device=device, progress=progress)
    return _measure([drawn], model, sampler, (reference, detector), config)


class _Drawn(NamedTuple):
    """What one worker drew: batches by their numbers."""

    readings: dict[int, Reading]
    kept: dict[int, Tensor]
    """The first images."""
    num_function_evaluations: int
    forward_passes: int
    seconds: float


def _draw(
    model: Denoiser,
    sampler: SamplerConfig,
    classes: Tensor,
    detector: Detector,
    workers: Workers,
    *,
    config: EvaluationConfig,
    seed: int,
    device: torch.device,
    progress: Callable[[float], None],
) -> _Drawn:
    """This worker's share of the batches."""
    readings: dict[int, Reading] = {}
    kept: dict[int, Tensor] = {}
    nfe, passes, seconds = 0, 0, 0.0
    batch = min(config.batch, len(classes))
    share = (workers.rank, workers.count)
    drawing = iter(generate(model, sampler, classes, seed=seed, batch=batch, device=device, share=share))
    for number in range(workers.rank, -(-len(classes) // batch), workers.count):
        started = time.perf_counter()
        generated = next(drawing)
        images = to_uint8(generated.images)  # looks at every value: a GPU's work is done when this is
        seconds += time.perf_counter() - started
        readings[number] = read_padded(detector, images, batch)
        if number * batch < GRID_IMAGES:
            kept[number] = generated.images.cpu()
        nfe, passes = generated.num_function_evaluations, generated.forward_passes
        progress(min(1.0, (number + workers.count) * batch / len(classes)))
    return _Drawn(readings, kept, nfe, passes, seconds)


def _measure(
    parts: Sequence[_Drawn],
    model: Denoiser,
    sampler: SamplerConfig,
    against: tuple[ReferenceStatistics, Detector],
    config: EvaluationConfig,
) -> TrialEvaluation:
    """Distances and cost of what all workers drew."""
    reference, detector = against
    readings = {number: reading for part in parts for number, reading in part.readings.items()}
    kept = {number: images for part in parts for number, images in part.kept.items()}
    features = collect(detector, (readings[number] for number in sorted(readings)))
    measured = distances(features, reference, config.metrics, extrapolate=config.extrapolate)
    metrics = {
        **measured.metrics,
        "cost/nfe": float(parts[0].num_function_evaluations),
        "cost/forward_passes": float(parts[0].forward_passes),
        "cost/flops_per_image": float(count_flops(model.config, sampler)),
        "cost/sampling_seconds_per_image": sum(part.seconds for part in parts) / len(features),
    }
    samples = torch.cat([kept[number] for number in sorted(kept)])[:GRID_IMAGES]
    return TrialEvaluation(metrics, samples, measured.notes)


def evaluate(
    model: PatchForcingTransformer,
    config: EvaluationConfig,
    sampler: SamplerConfig,
    images: Tensor,
    labels: Tensor,
    *,
    device: torch.device,
    detector: Detector | None = None,
    reference: ReferenceStatistics | None = None,
    progress: Progress = lambda part, share: None,
    workers: Workers = ALONE,
) -> TrialEvaluation | None:
    """Measure a model (averaged weights, evaluation mode) on held-out images.

    Args:
        images: (M, C, H, W) uint8. labels: (M,); generated image i is of class labels[i mod M].
        detector: on the device; by default the configuration's.
        reference: what generated images are compared with; by default the held-out images.
        workers: those that share the images to be generated, each with the same model; the first gets the result,
            the others None. The number of workers changes no digit.
    """
    detector = detector or config.load_detector().to(device)
    held_out = None
    if workers.first:
        held_out = measure_held_out(model, config, images, labels, device=device, progress=progress)
        if reference is None:
            reference = cached_reference(ImageTensor(images), detector, None, source="held-out images", device=device)
    drawn = _draw(
        model,
        sampler,
        classes_of(labels, config.images),
        detector,
        workers,
        config=config,
        seed=config.seed,
        device=device,
        progress=lambda share: progress("sampling", 0.2 + 0.8 * share),
    )
    parts = workers.to_first(drawn)
    if held_out is None or reference is None:
        return None
    sampled = _measure(parts, model, sampler, (reference, detector), config)
    return TrialEvaluation({**held_out.metrics, **sampled.metrics}, sampled.samples, sampled.notes, held_out.maps)


def measure_held_out(
    model: PatchForcingTransformer,
    config: EvaluationConfig,
    images: Tensor,
    labels: Tensor,
    *,
    device: torch.device,
    progress: Progress = lambda part, share: None,
) -> HeldOut:
    """Validation loss, correlation and calibration on held-out images (M, C, H, W) uint8 with labels (M,)."""
    x1, y = from_uint8(images.to(device)), labels.to(device)
    x0 = seeding.noise_for_images(config.seed, 0, len(x1), tuple(x1.shape[1:]), device)
    progress("validation", 0.0)
    metrics = validation_losses(model, x1, y, x0, config.batch)
    if not model.config.difficulty_head:
        return HeldOut(metrics, None)
    for t in config.context_timesteps:
        progress("context", 0.1)
        helps = context_helps(model, x1, y, x0, t=t, batch=config.batch)
        metrics |= context_metrics(helps, context_uncertainty(model, x1, y, x0, t=t, batch=config.batch))
    if not config.difficulty_timesteps:
        return HeldOut(metrics, None)
    progress("difficulty", 0.15)
    found, sigma = _difficulty(model, x1, y, x0, config)
    maps = UncertaintyMaps(
        images[:MAP_IMAGES].cpu().numpy(),
        np.array(shown_timesteps(config.difficulty_timesteps)),
        np.stack(sigma).astype(np.float32),
    )
    return HeldOut({**metrics, **found}, maps)


def classes_of(labels: Tensor, images: int) -> Tensor:
    """Classes of generated images: the held-out ones' (M,), over and over."""
    return labels[torch.arange(images) % len(labels)]
