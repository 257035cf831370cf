"""Fréchet distance between two sets of features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D, divided by n − 1) of n feature vectors, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n: int


def moments(features: ArrayLike | torch.Tensor) -> Moments:
    """Moments of features (N, D). ValueError for fewer than two rows or a value that is not finite."""
    values = features.detach().cpu().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)
    values = values.astype(np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"features of shape {values.shape}: a covariance needs (N, D) with N ≥ 2 images")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise ValueError(f"{bad} of {len(values)} feature vectors hold NaN or infinity")
    return Moments(values.mean(axis=0), np.cov(values, rowvar=False).reshape(values.shape[1], -1), len(values))


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a positive semi-definite matrix; rounding below zero is cut off."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def distance_of_moments(a: Moments, b: Moments) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2·(Σa^½ Σb Σa^½)^½) (Dowson & Landau 1982).

    The symmetric form has real, non-negative eigenvalues, so singular covariances (fewer images than features)
    need no offset and no discarded imaginary part.
    """
    root = _square_root(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0)
    difference = a.mean - b.mean
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(eigenvalues).sum()
    return float(max(difference @ difference + trace, 0.0))


def frechet_distance(features_a: ArrayLike | torch.Tensor, features_b: ArrayLike | torch.Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two feature sets (N, D) and (M, D) (Heusel et al. 2017)."""
    a, b = moments(features_a), moments(features_b)
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions cannot be compared")
    return distance_of_moments(a, b)
