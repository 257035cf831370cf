"""Fréchet distance. Oracles: closed forms of Gaussians, and scipy's matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from pforce.metrics import Moments, distance_of_moments, frechet_distance
from pforce.metrics.frechet import MomentSums, Reference, frechet_estimate, frechet_infinity, moments


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
    with pytest.raises(ValueError, match="3 and 2 numbers cannot be compared"):
        frechet_distance(good, good[:, :2])


def test_streamed_sums_give_the_moments_of_all_features_however_they_are_split():
    """Oracle: numpy's mean and cov of everything at once."""
    features = np.random.default_rng(3).normal(size=(157, 11)) * 3 + 40
    sums = MomentSums(11)
    for part in np.array_split(features, 7):
        sums.merge(MomentSums(11).add(torch.from_numpy(part)))
    found = sums.moments()
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-9, atol=1e-12)
    assert found.n == 157
    rest = sums.without(MomentSums(11).add(torch.from_numpy(features[:57]))).moments()
    np.testing.assert_allclose(rest.covariance, np.cov(features[57:].T), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("far", [1e6, 1e8])
def test_features_far_from_zero_have_the_same_distance(far):
    """Oracle: the same features around zero; streamed, merged, by parts, and with fewer images than features."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(300, 6)) * 1.3, rng.normal(size=(200, 6)) + 0.2
    near = frechet_distance(a, b)
    assert frechet_distance(a + far, b + far) == pytest.approx(near, rel=1e-5)
    sums = MomentSums(6)
    for part in np.array_split(a + far, 5):
        sums.merge(MomentSums(6).add(torch.from_numpy(part)))
    np.testing.assert_allclose(sums.moments().covariance, np.cov(a.T), rtol=1e-5)
    rest = sums.without(MomentSums(6).add(torch.from_numpy(a[:60] + far))).moments()
    np.testing.assert_allclose(rest.covariance, np.cov(a[60:].T), rtol=1e-4)
    for count in (300, 5):
        found = frechet_estimate(a[:count] + far, Reference(moments(b + far)))
        expected = frechet_estimate(a[:count], Reference(moments(b)))
        assert found[:3] == pytest.approx(expected[:3], rel=1e-4)


def test_the_interval_covers_the_expected_distance_at_this_n():
    """Oracle: the mean distance of 400 other sets of 300 images; the interval holds it about 95 % of the time."""
    rng = np.random.default_rng(4)
    reference = Reference(moments(rng.normal(size=(2000, 5))))

    def drawn() -> np.ndarray:
        return rng.normal(size=(300, 5)) * 1.2 + 0.2

    expected = np.mean([reference.distance(moments(drawn())) for _ in range(400)])
    found = [frechet_estimate(drawn(), reference) for _ in range(100)]
    assert sum(each.low <= expected <= each.high for each in found) >= 87
    assert found[0].n == 300


def test_extrapolation_takes_off_what_few_images_add():
    """Oracle: the closed form of the two Gaussians. At n = 200 of 20 features the plain distance is far above it."""
    rng = np.random.default_rng(5)
    size, scale = 20, 1.3
    reference = Reference(Moments(np.zeros(size), np.eye(size), None))
    truth = size * (scale - 1) ** 2
    plain, endless = [], []
    for _ in range(40):
        features = rng.normal(size=(200, size)) * scale
        plain.append(reference.distance(moments(features)))
        endless.append(frechet_infinity(features, reference, interval=False).value)
    assert abs(np.mean(endless) - truth) < 0.2 * abs(np.mean(plain) - truth)
    found = [frechet_infinity(rng.normal(size=(200, size)) * scale, reference) for _ in range(60)]
    covered = sum(each.low <= np.mean(endless) <= each.high for each in found)
    widths = [each.high - each.low for each in found]
    assert covered >= 48
    assert np.median(widths) < 2 * 2 * 1.96 * np.std(
        [each.value for each in found]
    )  # no wider than twice what it needs
    with pytest.raises(ValueError, match="at least 16"):
        frechet_infinity(features[:15], reference)


def test_fewer_images_than_features_are_measured_through_their_gram_matrix():
    """Oracle: the moments' own formula, for the whole set and for parts of it. Both sides of n = D."""
    rng = np.random.default_rng(6)
    reference = Reference(moments(rng.normal(size=(200, 30)) @ rng.normal(size=(30, 30))))
    for n in (12, 29, 30, 31, 60):
        features = rng.normal(size=(n, 30)) + 0.3
        groups = 4
        found = frechet_estimate(features, reference, groups=groups)
        # The D × D problem has eigenvalues that are zero but for rounding, and takes their roots.
        assert found.value == pytest.approx(reference.distance(moments(features)), rel=1e-7)
        left = np.array([reference.distance(moments(features[np.arange(n) % groups != g])) for g in range(groups)])
        error = np.sqrt((groups - 1) / groups * np.square(left - left.mean()).sum())
        assert (found.high - found.low) / 2 == pytest.approx(3.182446 * error, rel=1e-5)  # t of 3 degrees of freedom
    with pytest.raises(ValueError, match="different detectors"):
        frechet_estimate(rng.normal(size=(9, 31)), reference)
    with pytest.raises(ValueError, match="1 of 9 feature vectors"):
        frechet_estimate(np.where(np.arange(270).reshape(9, 30) == 4, np.nan, 1.0), reference)


def test_two_images_have_a_distance_but_no_interval():
    found = frechet_estimate(np.eye(2), Reference(Moments(np.zeros(2), np.eye(2), None)))
    assert np.isfinite(found.value)
    assert np.isnan(found.low)
