"""Calibration of the difficulty head, by deciles: whether the predicted variance equals the observed squared error.

R(t) measures whether harder patches get a larger σ; it does not change if every σ is doubled. Calibration measures
whether the numbers are right: whether the patches with a predicted squared error of 0.1 have a mean error of 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pforce import flow
from pforce.metrics.difficulty import PatchErrors, patch_errors

DECILES = 10
# The smallest variance that the loss distinguishes. A smaller error counts as this, so that no ratio is 0 or infinite.
SMALLEST = math.exp(flow.LOG_VARIANCE_RANGE[0])


class Calibration(NamedTuple):
    """Expected and observed squared velocity errors at one timestep, by deciles of the expected error."""

    t: float
    expected: NDArray[np.float64]
    """Means of the patches' exp(ℓ) in each decile, (10,), rising."""
    observed: NDArray[np.float64]
    """Means of the same patches' squared error, (10,)."""
    error: float
    """Root mean square over deciles of ln(observed / expected); 0 is perfect, ln 2 is wrong by a factor of 2.

    It is a log ratio because the variances span orders of magnitude: a difference would reflect the hardest patches
    only and depend on the scale of the latents. Errors by a factor of 2 upwards and downwards count the same.
    """
    images: int
    patches: int


def calibration_of(errors: PatchErrors) -> Calibration:
    """Calibration from patch errors: patches of all images, sorted by expected error and cut into ten groups of equal
    size (within one).

    Patches with exactly the same expected error (all patches, for an untrained head) each count with their mean error,
    so that the order of the images does not matter. ValueError for fewer than ten patches.
    """
    patches = errors.patches
    if patches < DECILES:
        raise ValueError(f"{patches} patches: ten deciles need at least {DECILES}")
    expected_error, observed_error = errors.expected.ravel(), errors.observed.ravel()
    _, group, count = np.unique(expected_error, return_inverse=True, return_counts=True)
    alike = (np.bincount(group, weights=observed_error) / count)[group]
    deciles = np.array_split(np.argsort(expected_error, kind="stable"), DECILES)
    expected = np.array([expected_error[rows].mean() for rows in deciles])
    observed = np.array([alike[rows].mean() for rows in deciles])
    ratios = np.log(np.maximum(observed, SMALLEST) / np.maximum(expected, SMALLEST))
    error = float(np.sqrt(np.square(ratios).mean()))
    return Calibration(errors.t, expected, observed, error, errors.images, patches)


def calibration(
    model: flow.VelocityModel, x1: Tensor, y: Tensor, x0: Tensor, *, timesteps: Sequence[float], batch: int = 64
) -> list[Calibration]:
    """Calibration of the predicted variance at each timestep; all patches share it.

    x1 are held-out images (M, C, H, W) with labels y (M,), x0 is noise like x1. A patch's expected squared error is the
    mean of exp(ℓ) over its pixels, its observed one the mean of (v* − v)² over its pixels and channels. ValueError for
    a model without a difficulty head, and for fewer than ten patches.
    """
    return [calibration_of(patch_errors(model, x1, y, x0, t=t, batch=batch)) for t in timesteps]
