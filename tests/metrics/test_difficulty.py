"""Difficulty correlation. Oracles: models whose uncertainty is known in relation to their error, scipy's correlations,
a bootstrap that puts resampled images together one by one, and a distribution whose R is known in closed form.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pforce import grid
from pforce.flow import Prediction
from pforce.metrics import (
    TIMESTEPS,
    PatchErrors,
    correlation_by_class,
    correlation_of,
    difficulty_correlation,
    patch_errors,
)
from pforce.metrics.intervals import bootstrap

B, SIDE, PATCH = 6, 8, 2


class Known:
    """Predicts zero velocity, and log-variance that gives a chosen σ at each patch."""

    patch = PATCH

    def __init__(self, sigma):
        self.sigma, self.done = sigma, 0

    def __call__(self, x, t, y):
        if self.sigma is None:
            return Prediction(torch.zeros_like(x), None)
        rows = self.sigma[self.done : self.done + len(x)]
        self.done += len(x)
        return Prediction(torch.zeros_like(x), 2 * grid.to_pixels(rows, PATCH, SIDE, SIDE).log())


def data():
    return torch.randn(B, 3, SIDE, SIDE), torch.zeros(B, dtype=torch.long), torch.randn(B, 3, SIDE, SIDE)


def errors_of(sigma, observed, labels=None) -> PatchErrors:
    """(M, N) arrays."""
    return PatchErrors(
        0.5, sigma, sigma**2, observed, np.zeros(len(sigma), dtype=np.int64) if labels is None else labels
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_a_linear_relation_is_one(sign):
    """σ an affine function of the patch's error: |R| = 1, in every resample; over batches of 4 and 2 images, pooled."""
    x1, y, x0 = data()
    error = grid.pool((x1 - x0).square(), PATCH)
    model = Known(10 + sign * error)
    (r,) = difficulty_correlation(model, x1, y, x0, timesteps=(0.3,), batch=4)
    for value in (r.pearson, r.spearman, *r.pearson_interval, *r.spearman_interval):
        assert value == pytest.approx(sign, abs=1e-5)
    assert (r.t, r.images, r.patches) == (0.3, B, B * 16)


def test_a_monotonic_relation_is_one_for_ranks_only():
    x1, y, x0 = data()
    error = grid.pool((x1 - x0).square(), PATCH)
    (r,) = difficulty_correlation(Known((2 * error).exp()), x1, y, x0, timesteps=(0.3,), batch=B)
    assert r.spearman == pytest.approx(1, abs=1e-5)
    assert r.pearson < 0.9


def test_a_model_without_a_head_is_refused():
    x1, y, x0 = data()
    with pytest.raises(ValueError, match="without a difficulty head"):
        difficulty_correlation(Known(None), x1, y, x0, timesteps=(0.3,))


def test_arrays_are_by_image_and_patch():
    x1, _, x0 = data()
    sigma = torch.rand(B, 16) + 0.5
    e = patch_errors(Known(sigma), x1, torch.arange(B), x0, t=0.3, batch=4)
    assert e.sigma == pytest.approx(sigma.numpy(), rel=1e-6)
    assert e.observed == pytest.approx(grid.pool((x1 - x0).square(), PATCH).numpy(), rel=1e-6)
    assert list(e.labels) == list(range(B))
    assert (e.images, e.patches) == (B, B * 16)


def test_the_default_is_nineteen_timesteps():
    assert TIMESTEPS == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85,
                         0.9, 0.95)  # fmt: skip
    x1, y, x0 = data()
    found = difficulty_correlation(Known(torch.rand(19 * B, 16) + 0.5), x1, y, x0)
    assert tuple(r.t for r in found) == TIMESTEPS


def test_values_are_scipy_s():
    """With ties, and with values far from zero, where sums of squares would cancel."""
    generator = np.random.default_rng(0)
    sigma = 1e4 + generator.integers(0, 5, (30, 16)).astype(float)
    observed = 1e-6 * (sigma - 1e4 + generator.exponential(2, sigma.shape))
    r = correlation_of(errors_of(sigma, observed))
    assert r.pearson == pytest.approx(stats.pearsonr(sigma.ravel(), observed.ravel()).statistic, abs=1e-9)
    assert r.spearman == pytest.approx(stats.spearmanr(sigma.ravel(), observed.ravel()).statistic, abs=1e-12)


def test_intervals_are_those_of_images_put_together_one_by_one():
    """The resamples, drawn here from an equal generator, as a loop that concatenates the drawn images' patches."""
    generator = np.random.default_rng(1)
    m, resamples = 9, 2000
    sigma = generator.gamma(2, 1, (m, 4)) * generator.gamma(2, 1, (m, 1))
    observed = sigma * generator.exponential(1, sigma.shape)
    ranks = [stats.rankdata(values).reshape(values.shape) for values in (sigma, observed)]
    drawn = np.random.default_rng(0).integers(0, m, (resamples, m))
    slow = [
        [np.corrcoef(a[rows].ravel(), b[rows].ravel())[0, 1] for a, b in ((sigma, observed), ranks)] for rows in drawn
    ]
    low, high = np.quantile(slow, (0.025, 0.975), axis=0)
    r = correlation_of(errors_of(sigma, observed))
    assert r.pearson_interval == pytest.approx((low[0], high[0]), abs=1e-9)
    assert r.spearman_interval == pytest.approx((low[1], high[1]), abs=1e-9)


def test_together_is_as_one_by_one(monkeypatch):
    """Means: the intervals of each alone, the same whatever is held in memory at once."""
    values = np.random.default_rng(0).normal(3, 1, (50, 2))
    together = bootstrap(values.mean(axis=0), lambda counts: counts @ values / 50, 50)
    for k, estimate in enumerate(together):
        (alone,) = bootstrap(
            values[:, k].mean(keepdims=True), lambda counts, k=k: (counts @ values[:, k] / 50)[:, None], 50
        )
        assert (estimate.value, estimate.n) == (pytest.approx(alone.value), 50)
        assert (estimate.low, estimate.high) == pytest.approx((alone.low, alone.high), abs=0.03)  # of a width of 0.55
    monkeypatch.setattr("pforce.metrics.intervals.COUNTS_AT_ONCE", 1234)
    assert bootstrap(values.mean(axis=0), lambda counts: counts @ values / 50, 50) == together


def test_a_statistic_that_no_resample_defines_has_no_interval():
    (e,) = bootstrap(np.array([1.0]), lambda counts: np.full((len(counts), 1), np.nan), 5)
    assert math.isnan(e.low)
    assert math.isnan(e.high)


def test_uncertainty_that_knows_nothing_has_zero_within_its_interval():
    """In at least 90 of 100 tables of noise (95 expected)."""
    within = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        r = correlation_of(errors_of(generator.random((40, 16)), generator.exponential(1, (40, 16))))
        within += r.pearson_interval[0] <= 0 <= r.pearson_interval[1]
    assert within >= 90


def test_intervals_cover_the_known_correlation():
    """σ = 5 + a_i + b_ij and error = 5 + a_i + c_ij, all unit normal, a shared by an image's patches: R = 1/2 exactly.

    Patches of an image are alike, so an interval over patches would be too narrow; this one is over images. At
    least 88 % of 200 tables of 80 images, and clearly fewer where patches are resampled as if they were images.
    """
    covered, by_patch = 0, 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        image = generator.normal(size=(80, 1))
        sigma, observed = (5 + image + generator.normal(size=(80, 16)) for _ in range(2))
        low, high = correlation_of(errors_of(sigma, observed)).pearson_interval
        covered += low <= 0.5 <= high
        if seed < 40:
            low, high = correlation_of(errors_of(sigma.reshape(-1, 1), observed.reshape(-1, 1))).pearson_interval
            by_patch += low <= 0.5 <= high
    assert covered >= 176
    assert by_patch <= 32


def test_what_does_not_vary_has_no_correlation():
    """No number, no interval, and no warning; nor an interval from one image."""
    varied = np.random.default_rng(0).random((5, 4))
    for r in (correlation_of(errors_of(np.ones((5, 4)), varied)), correlation_of(errors_of(varied, np.ones((5, 4))))):
        assert np.isnan([r.pearson, r.spearman, *r.pearson_interval, *r.spearman_interval]).all()
        assert (r.images, r.patches) == (5, 20)
    one = correlation_of(errors_of(varied[:1], varied[:1] ** 2))
    assert one.pearson > 0.9
    assert np.isnan(one.pearson_interval).all()


def test_resamples_where_nothing_varies_are_left_out():
    """Two flat images and one that varies: a resample of flat ones alone defines no correlation."""
    sigma = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    r = correlation_of(errors_of(sigma, 2 * sigma))
    assert (*r.pearson_interval, *r.spearman_interval) == pytest.approx((1, 1, 1, 1))


def test_by_class_is_that_of_the_class_s_images():
    generator = np.random.default_rng(0)
    labels = np.array([7, 2, 7, 5, 2, 7])
    sigma, observed = generator.random((6, 8)), generator.random((6, 8))
    found = correlation_by_class(errors_of(sigma, observed, labels))
    assert list(found) == [2, 7]  # one image of class 5
    for label, r in found.items():
        rows = labels == label
        assert r == correlation_of(errors_of(sigma[rows], observed[rows], labels[rows]))
        assert r.pearson == pytest.approx(np.corrcoef(sigma[rows].ravel(), observed[rows].ravel())[0, 1])
        assert r.images == rows.sum()
