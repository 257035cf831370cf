"""Fréchet distance. Oracles: closed forms of Gaussians, and scipy's matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from pforce.metrics import Moments, distance_of_moments, frechet_distance


def test_known_gaussians():
    """|μa − μb|² + tr(Σa + Σb − 2(ΣaΣb)^½) of diagonal covariances: Σ(√a − √b)²."""
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    mean = np.array([1.0, -2.0, 0.5])
    expected = (mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = distance_of_moments(Moments(mean, np.diag(a), 9), Moments(np.zeros(3), np.diag(b), 9))
    assert found == pytest.approx(expected, rel=1e-12)


def test_against_the_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(200, 12)) + 0.3
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)


def test_a_set_against_itself_is_zero_even_where_the_covariance_is_singular():
    features = np.random.default_rng(1).normal(size=(5, 40))
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-6)


def test_bad_features_are_refused():
    good = np.random.default_rng(2).normal(size=(5, 3))
    with pytest.raises(ValueError, match="N ≥ 2"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match="1 of 5 feature vectors"):
        frechet_distance(np.where(np.arange(15).reshape(5, 3) == 4, np.nan, good), good)
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        frechet_distance(good, good[:, :2])
