"""What is asked of a model's difficulty head on held-out images, in one call: numbers and what figures need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce import seeding
from pforce.images import from_uint8
from pforce.metrics.calibration import DECILES, Calibration, calibration_of
from pforce.metrics.context import (
    ContextHelps,
    ContextUncertainty,
    context_helps,
    context_metrics,
    context_uncertainty,
)
from pforce.metrics.difficulty import (
    TIMESTEPS,
    DifficultyCorrelation,
    PatchErrors,
    correlation_by_class,
    correlation_of,
    patch_errors,
)
from pforce.metrics.evaluate import (
    MAP_IMAGES,
    SHOWN_TIMESTEPS,
    calibration_metrics,
    correlation_metrics,
    validation_losses,
)
from pforce.models import PatchForcingTransformer

Analysis = Literal["loss", "difficulty", "context"]
CLASS_TIMESTEP = 0.6
CONTEXT_TIMESTEPS = (0.1, 0.2, 0.3)
"""The paper's."""


@dataclass
class Analyses:
    """What was found; empty where it was not asked for."""

    metrics: dict[str, float] = field(default_factory=dict)
    correlations: list[DifficultyCorrelation] = field(default_factory=list)
    by_class: dict[int, DifficultyCorrelation] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)
    errors: list[PatchErrors] = field(default_factory=list)
    """At the shown timesteps."""
    maps: dict[float, NDArray[np.float64]] = field(default_factory=dict)
    """t → (≤ 8, h, w) patch means of σ of the first images."""
    helps: list[ContextHelps] = field(default_factory=list)
    uncertainty: list[ContextUncertainty] = field(default_factory=list)


@torch.no_grad()
def analyse(
    model: PatchForcingTransformer,
    images: Tensor,
    labels: Tensor,
    *,
    what: Sequence[Analysis],
    seed: int,
    batch: int,
    device: torch.device,
    progress: Callable[[str, float], None] = lambda part, share: None,
) -> Analyses:
    """Measure a model (on the device, in eval mode) on held-out images (M, C, H, W) uint8 with labels (M,).

    Noise belongs to (seed, i). ValueError for difficulty or context of a model without a difficulty head.
    """
    x1, y = from_uint8(images.to(device)), labels.to(device)
    x0 = seeding.noise_for_images(seed, 0, len(x1), tuple(x1.shape[1:]), device)
    found = Analyses()
    if "loss" in what:
        progress("validation loss", 0.0)
        found.metrics |= validation_losses(model, x1, y, x0, batch)
    if "difficulty" in what:
        _difficulty(found, model, (x1, y, x0), batch, progress)
    if "context" in what:
        _context(found, model, (x1, y, x0), batch, progress)
    return found


Data = tuple[Tensor, Tensor, Tensor]


def _difficulty(
    found: Analyses, model: PatchForcingTransformer, data: Data, batch: int, progress: Callable[[str, float], None]
) -> None:
    height, width = (size // model.patch for size in data[0].shape[-2:])
    for number, t in enumerate(TIMESTEPS):
        progress("difficulty", number / len(TIMESTEPS))
        errors = patch_errors(model, *data, t=t, batch=batch)
        found.correlations.append(correlation_of(errors))
        found.metrics |= correlation_metrics(found.correlations[-1])
        if t in SHOWN_TIMESTEPS:
            found.errors.append(errors)
            found.maps[t] = errors.sigma[:MAP_IMAGES].reshape(-1, height, width)
            if errors.patches >= DECILES:
                found.calibrations.append(calibration_of(errors))
                found.metrics |= calibration_metrics(found.calibrations[-1])
        if t == CLASS_TIMESTEP:
            found.by_class = correlation_by_class(errors)


def _context(
    found: Analyses, model: PatchForcingTransformer, data: Data, batch: int, progress: Callable[[str, float], None]
) -> None:
    parts = 2 * len(CONTEXT_TIMESTEPS)
    for number, t in enumerate(CONTEXT_TIMESTEPS):

        def told(share: float, before: int = 2 * number) -> None:
            progress("context", (before + share) / parts)

        helps = context_helps(model, *data, t=t, batch=batch, progress=told)
        uncertainty = context_uncertainty(model, *data, t=t, batch=batch)
        found.helps.append(helps)
        found.uncertainty.append(uncertainty)
        progress("context", (2 * number + 2) / parts)
        found.metrics |= context_metrics(helps, uncertainty)
