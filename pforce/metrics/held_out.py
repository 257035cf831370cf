"""Measurements on held-out images: loss, difficulty and calibration at a timestep, context at a timestep.

Each is a part of its own, with numbers under their fixed names and arrays for figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce import flow, seeding
from pforce.images import from_uint8
from pforce.metrics.calibration import DECILES, Calibration, calibration_of
from pforce.metrics.context import (
    ContextHelps,
    ContextUncertainty,
    context_helps,
    context_metrics,
    context_uncertainty,
)
from pforce.metrics.difficulty import DifficultyCorrelation, PatchErrors, correlation_of, patch_errors
from pforce.metrics.intervals import Estimate
from pforce.metrics.names import DIFFICULTY, VALIDATION_LOSS, MetricName
from pforce.models import PatchForcingTransformer

MAP_IMAGES = 8
"""Number of images in the picture of predicted uncertainty."""
SHOWN_TIMESTEPS = (0.2, 0.4, 0.6, 0.8)
"""Timesteps at which all patches are kept for figures."""

Arrays = dict[str, NDArray[Any]]


class NotFinite(ArithmeticError):
    """A model predicts values that are not finite: it cannot be measured, and there is no result."""


@dataclass(frozen=True)
class Found:
    """Result of a measurement."""

    values: Mapping[str, float]
    """Values by their fixed names; NaN where a value is undefined."""
    undefined: Mapping[str, str] = field(default_factory=dict)
    """Name of each value that is not a finite number → the reason."""
    arrays: Arrays = field(default_factory=dict)
    """Arrays for figures, by name."""
    notes: tuple[str, ...] = ()
    """Notes for readers of the numbers."""


class HeldOutData(NamedTuple):
    """Held-out images on a device, and their noise."""

    x1: Tensor
    """Images (M, C, H, W) float32 in [−1, 1]."""
    y: Tensor
    """Classes (M,)."""
    x0: Tensor
    """Noise (M, C, H, W); image i's belongs to (seed, i)."""
    batch: int
    """Images per forward pass."""


def held_out_data(images: Tensor, labels: Tensor, *, seed: int, batch: int, device: torch.device) -> HeldOutData:
    """Held-out data from images (M, C, H, W) uint8 with labels (M,), with their noise."""
    x1, y = from_uint8(images.to(device)), labels.to(device)
    x0 = seeding.noise_for_images(seed, 0, len(x1), tuple(x1.shape[1:]), device)
    return HeldOutData(x1, y, x0, batch)


def _found(values: dict[str, float], reason: str, arrays: Arrays | None = None) -> Found:
    undefined = {name: reason for name, value in values.items() if not math.isfinite(value)}
    return Found(values, undefined, arrays or {})


@torch.no_grad()
def measure_loss(model: PatchForcingTransformer, data: HeldOutData) -> Found:
    """Measure `val/loss` and its segments over all images. NotFinite where one is not a finite number."""
    x1, y, x0, batch = data
    total = torch.zeros(flow.VALIDATION_SEGMENTS, dtype=torch.float64, device=x1.device)
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        total += flow.validation_loss(model, x1[rows], y[rows], x0[rows]) * len(x1[rows])
    segments = (total / len(x1)).tolist()
    if not all(map(math.isfinite, segments)):
        raise NotFinite(f"held-out losses by timestep are {segments}: the model has blown up")
    times = flow.validation_timesteps()
    named = {str(MetricName(VALIDATION_LOSS, t=t)): value for t, value in zip(times, segments, strict=True)}
    return Found({VALIDATION_LOSS: sum(segments) / len(segments), **named})


def measure_difficulty(model: PatchForcingTransformer, data: HeldOutData, t: float) -> Found:
    """Measure R (Pearson and Spearman) and the calibration of σ at a timestep, with maps of σ of the first images as
    arrays.

    At `SHOWN_TIMESTEPS` the arrays also hold all patches (`errors_of` reads them). ValueError for a model without a
    difficulty head.
    """
    x1, y, x0, batch = data
    errors = patch_errors(model, x1, y, x0, t=t, batch=batch)
    height, width = (size // model.patch for size in x1.shape[-2:])
    values = correlation_metrics(correlation_of(errors))
    if errors.patches >= DECILES:  # fewer patches have no deciles, and a finished training must not fail on that
        values |= calibration_metrics(calibration_of(errors))
    arrays: Arrays = {"maps": errors.sigma[:MAP_IMAGES].reshape(-1, height, width).astype(np.float32)}
    if t in SHOWN_TIMESTEPS:
        # Exact: the float64 values were converted from float32.
        arrays |= {
            name: getattr(errors, name).astype(np.float32) for name in ("sigma", "expected", "observed")
        } | {"labels": errors.labels}  # fmt: skip
    return _found(values, "σ or the error is the same everywhere, or not finite", arrays)


def measure_context(
    model: PatchForcingTransformer, data: HeldOutData, t: float, progress: Callable[[float], None] = lambda share: None
) -> Found:
    """Measure both context ablations at a timestep. ValueError for a model without a difficulty head."""
    x1, y, x0, batch = data
    helps = context_helps(model, x1, y, x0, t=t, batch=batch, progress=progress)
    uncertainty = context_uncertainty(model, x1, y, x0, t=t, batch=batch)
    curves = ("context_times", "loss", "low", "high", "change", "change_low", "change_high")
    arrays: Arrays = {name: np.asarray(getattr(helps, name)) for name in curves}
    arrays["counts"] = np.array([helps.images, helps.uncertain_patches])
    arrays["context_time"] = np.array(uncertainty.context_time)
    arrays["difference"] = np.array(uncertainty.difference, dtype=np.float64)
    arrays |= {name: getattr(uncertainty, name).astype(np.float32) for name in ("alone", "with_context")}
    return _found(context_metrics(helps, uncertainty), "the prediction is not finite", arrays)


def shown_timesteps(timesteps: Sequence[float]) -> tuple[float, ...]:
    """The timesteps whose calibration and maps are shown: all where they are few, else those in SHOWN_TIMESTEPS."""
    chosen = tuple(t for t in timesteps if t in SHOWN_TIMESTEPS)
    return chosen if len(timesteps) > len(SHOWN_TIMESTEPS) and chosen else tuple(timesteps)


def correlation_metrics(r: DifficultyCorrelation) -> dict[str, float]:
    """Metrics of R at one timestep with its intervals, under their fixed names; no intervals where σ is constant."""
    metrics = {}
    found = ((r.pearson, r.pearson_interval), (r.spearman, r.spearman_interval))
    for kind, (value, interval) in zip(DIFFICULTY, found, strict=True):
        name = MetricName(kind, t=r.t)
        metrics[str(name)] = value
        if not math.isnan(interval[0]):
            metrics |= zip(map(str, name.bounds), interval, strict=True)
    return metrics


def calibration_metrics(c: Calibration) -> dict[str, float]:
    """Metrics of the calibration at one timestep by decile, under their fixed names."""
    metrics = {str(MetricName("calibration/error", t=c.t)): c.error}
    for decile, (expected, observed) in enumerate(zip(c.expected, c.observed, strict=True), start=1):
        metrics[str(MetricName("calibration/expected", t=c.t, decile=decile))] = float(expected)
        metrics[str(MetricName("calibration/observed", t=c.t, decile=decile))] = float(observed)
    return metrics


def correlation_from(values: Mapping[str, Any], t: float, *, images: int, patches: int) -> DifficultyCorrelation:
    """R at a timestep, read from a measurement's values."""

    def number(name: MetricName) -> float:
        value = values.get(str(name))
        return math.nan if value is None else float(value)

    both = []
    for kind in DIFFICULTY:
        name = MetricName(kind, t=t)
        low, high = name.bounds
        both.append((number(name), (number(low), number(high))))
    (pearson, of_pearson), (spearman, of_spearman) = both
    return DifficultyCorrelation(t, pearson, spearman, of_pearson, of_spearman, images, patches)


def errors_of(arrays: Arrays, t: float) -> PatchErrors | None:
    """All patches of a difficulty measurement, read from its arrays; None where they were not kept."""
    if "sigma" not in arrays:
        return None
    sigma, expected, observed = (arrays[name].astype(np.float64) for name in ("sigma", "expected", "observed"))
    return PatchErrors(t, sigma, expected, observed, arrays["labels"])


def context_of(arrays: Arrays, t: float) -> tuple[ContextHelps, ContextUncertainty]:
    """Both context ablations, read from a measurement's arrays."""
    images, patches = (int(count) for count in arrays["counts"])
    value, low, high, n = arrays["difference"].tolist()
    alone, shown = (arrays[name].astype(np.float64) for name in ("alone", "with_context"))
    return (
        ContextHelps(
            t, arrays["context_times"], arrays["loss"], arrays["low"], arrays["high"], arrays["change"],
            arrays["change_low"], arrays["change_high"], images, patches,
        ),
        ContextUncertainty(
            t, float(arrays["context_time"]), alone, shown, Estimate(value, low, high, int(n)), images
        ),
    )  # fmt: skip
