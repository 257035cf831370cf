"""What is measured on a trained model: validation loss, distance of generated images, what its uncertainty is worth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pforce import flow, seeding
from pforce.images import from_uint8
from pforce.metrics.calibration import DECILES, calibration_of
from pforce.metrics.detectors import Detector, load_detector
from pforce.metrics.difficulty import correlation_of, patch_errors
from pforce.metrics.frechet import Moments, distance_of_moments, moments
from pforce.models import PatchForcingTransformer
from pforce.sampling import Denoiser, SamplerConfig, count_flops, generate
from pforce.validation import require

GRID_IMAGES = 64
"""Images of the picture of samples."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, on how many images."""

    images: int = 1000
    """Generated images for the distances: the n that is stated beside them."""
    validation_images: int = 1000
    """Held-out images for losses, correlation and reference features; all of them where there are fewer."""
    detector: Literal["openmoji"] = "openmoji"
    """Feature detector of the Fréchet distance."""
    difficulty_timesteps: tuple[float, ...] = (0.2, 0.6)
    """Timesteps of the difficulty correlation R(t) and of the calibration of σ, in (0, 1)."""
    seed: int = 0
    """Seed of the evaluation's noise: the same for all cells and training seeds, so that they share it."""
    batch: int = 64
    """Images a forward pass."""

    def __post_init__(self) -> None:
        require(self.images >= 2, "images", self.images, "≥ 2")
        require(self.validation_images >= 2, "validation_images", self.validation_images, "≥ 2")
        require(
            all(0 < t < 1 for t in self.difficulty_timesteps),
            "difficulty_timesteps",
            self.difficulty_timesteps,
            "between 0 and 1",
        )
        require(self.batch > 0, "batch", self.batch, "> 0")


class TrialEvaluation(NamedTuple):
    """The numbers of a trial under their fixed names, and some of the images."""

    metrics: dict[str, float]
    samples: Tensor
    """(≤ 64, C, H, W) the first generated images."""


Progress = Callable[[str, float], None]
"""Told the part of the evaluation and the share of all of it that is done."""


@torch.no_grad()
def _validation(model: PatchForcingTransformer, x1: Tensor, y: Tensor, x0: Tensor, batch: int) -> dict[str, float]:
    total = torch.zeros(flow.VALIDATION_SEGMENTS, dtype=torch.float64, device=x1.device)
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        total += flow.validation_loss(model, x1[rows], y[rows], x0[rows]) * len(x1[rows])
    segments = (total / len(x1)).tolist()
    named = {f"val/loss_t{t:.4f}": value for t, value in zip(flow.validation_timesteps(), segments, strict=True)}
    return {"val/loss": sum(segments) / len(segments), **named}


def _difficulty(
    model: PatchForcingTransformer, x1: Tensor, y: Tensor, x0: Tensor, config: EvaluationConfig
) -> dict[str, float]:
    """Correlation and calibration of the predicted uncertainty, from the same forward passes."""
    metrics: dict[str, float] = {}
    for t in config.difficulty_timesteps:
        errors = patch_errors(model, x1, y, x0, t=t, batch=config.batch)
        r = correlation_of(errors)
        metrics[f"difficulty/pearson_t{t:.2f}"] = r.pearson
        metrics[f"difficulty/spearman_t{t:.2f}"] = r.spearman
        if r.patches < DECILES:
            continue  # a few images of a few patches have no deciles, and a finished training must not fail on that
        c = calibration_of(errors)
        metrics[f"calibration/error_t{t:.2f}"] = c.error
        for decile, (expected, observed) in enumerate(zip(c.expected, c.observed, strict=True), start=1):
            metrics[f"calibration/expected_t{t:.2f}_d{decile}"] = float(expected)
            metrics[f"calibration/observed_t{t:.2f}_d{decile}"] = float(observed)
    return metrics


def reference_moments(detector: Detector, images: Tensor, batch: int) -> Moments:
    """Moments of a detector's features of real images (M, C, H, W) in [−1, 1]."""
    return moments(torch.cat([detector.features(images[i : i + batch]).cpu() for i in range(0, len(images), batch)]))


def measure_sampler(
    model: Denoiser,
    sampler: SamplerConfig,
    classes: Tensor,
    reference: Moments,
    detector: Detector,
    *,
    seed: int,
    batch: int,
    device: torch.device,
    progress: Callable[[float], None] = lambda share: None,
) -> TrialEvaluation:
    """Generate an image for each class (M,), and measure their distance and their cost.

    The noise of image i belongs to (seed, i): samplers that are measured with one seed share it.
    """
    features: list[Tensor] = []
    kept: list[Tensor] = []
    nfe, passes, started = 0, 0, time.perf_counter()
    for generated in generate(model, sampler, classes, seed=seed, batch=batch, device=device):
        features.append(detector.features(generated.images.clamp(-1, 1)).cpu())
        kept.append(generated.images[: max(0, GRID_IMAGES - sum(len(k) for k in kept))].cpu())
        nfe, passes = generated.num_function_evaluations, generated.forward_passes
        progress(sum(len(f) for f in features) / len(classes))
    seconds = time.perf_counter() - started
    name = f"fd/{detector.name}"
    metrics = {
        name: distance_of_moments(moments(torch.cat(features)), reference),
        f"{name}_images": float(len(classes)),
        f"{name}_reference_images": float(reference.n),
        "cost/nfe": float(nfe),
        "cost/forward_passes": float(passes),
        "cost/flops_per_image": float(count_flops(model.config, sampler)),
        "cost/sampling_seconds_per_image": seconds / len(classes),
    }
    return TrialEvaluation(metrics, torch.cat(kept))


def evaluate(
    model: PatchForcingTransformer,
    config: EvaluationConfig,
    sampler: SamplerConfig,
    images: Tensor,
    labels: Tensor,
    *,
    device: torch.device,
    progress: Progress = lambda part, share: None,
) -> TrialEvaluation:
    """Measure a model (averaged weights, evaluation mode) on held-out images.

    Args:
        images: (M, C, H, W) uint8. labels: (M,); generated image i is of class labels[i mod M].
    """
    x1, y = from_uint8(images.to(device)), labels.to(device)
    x0 = seeding.noise_for_images(config.seed, 0, len(x1), tuple(x1.shape[1:]), device)
    progress("validation", 0.0)
    metrics = _validation(model, x1, y, x0, config.batch)
    if model.config.difficulty_head:
        progress("difficulty", 0.1)
        metrics |= _difficulty(model, x1, y, x0, config)
    detector = load_detector(config.detector).to(device)
    sampled = measure_sampler(
        model,
        sampler,
        classes_of(labels, config.images),
        reference_moments(detector, x1, config.batch),
        detector,
        seed=config.seed,
        batch=config.batch,
        device=device,
        progress=lambda share: progress("sampling", 0.2 + 0.8 * share),
    )
    return TrialEvaluation({**metrics, **sampled.metrics}, sampled.samples)


def classes_of(labels: Tensor, images: int) -> Tensor:
    """Classes of generated images: the held-out ones' (M,), over and over."""
    return labels[torch.arange(images) % len(labels)]
