"""Seeds that a metric needs at a number of images. Oracles: simulated t-tests, and values whose spreads are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.images_per_metric import MOST_SEEDS, blocks_of, power, seeds_needed, spread, told


@pytest.mark.parametrize(
    ("difference", "deviations", "n"),
    [(1.5, (1.0, 1.0), 5), (1.5, (0.2, 1.5), 6), (6.0, (1.0, 1.0), 2), (0.0, (1.0, 1.0), 4)],
)
def test_power_is_the_share_of_tests_that_find_the_difference(difference, deviations, n):
    """Within 0.014: four standard errors of 20,000 tests."""
    generator = np.random.default_rng(0)
    first, second = (generator.normal(0, sd, (20_000, n)) for sd in deviations)
    p = stats.ttest_ind(first + difference, second, axis=1, equal_var=False).pvalue
    variances = tuple(np.array(sd**2) for sd in deviations)
    assert float(power(np.array(difference), variances, n)) == pytest.approx((p < 0.05).mean(), abs=0.014)


def test_seeds_needed_are_the_fewest_that_are_enough():
    differences = np.array([0.01, 0.7, 1.0, 3.0, 1000.0])
    variances = (np.ones(5), np.full(5, 0.5))
    needed = seeds_needed(differences, variances)
    assert math.isinf(needed[0])
    for k in range(1, 4):
        at, before = (
            float(power(differences[k], (variances[0][k], variances[1][k]), int(n))) for n in (needed[k], needed[k] - 1)
        )
        assert before < 0.8 <= at
    assert needed[-1] == 2
    assert list(needed) == sorted(needed, reverse=True)
    assert math.isinf(seeds_needed(np.zeros(1), (np.ones(1), np.ones(1)))[0]), "no difference"
    assert needed[1] < MOST_SEEDS


def test_spreads_over_seeds_and_images_are_told_apart():
    """Values of a row's mean, deviations of a seed, of a block and of both: those of blocks cancel over seeds."""
    generator = np.random.default_rng(0)
    of_blocks = generator.normal(0, 3.0, (1, 500))
    first, second = (
        mean + generator.normal(0, 1.0, (400, 1)) + of_blocks + generator.normal(0, 2.0, (400, 500))
        for mean in (0, 1.0)
    )
    assert float(np.sqrt(spread(first))) == pytest.approx(math.sqrt(1 + 4), rel=0.05)
    few = told(first[:10], second[:10])
    assert few.over_images == pytest.approx(math.sqrt(9 + 4), rel=0.1)
    assert few.over_seeds == pytest.approx(math.sqrt(1 + 4), rel=0.1)
    assert few.low <= few.seeds <= few.high
    assert math.isnan(told(first[:4, :1], second[:4, :1]).over_images)


def test_a_sure_difference_and_none():
    generator = np.random.default_rng(1)
    row = generator.normal(0, 1.0, (6, 4))
    sure = told(row, generator.normal(1000, 1.0, (6, 4)))
    assert (sure.seeds, sure.high, sure.opposite) == (2, 2, 0)
    assert sure.p < 1e-6
    none = told(row, row[::-1])
    assert math.isinf(none.seeds)
    assert none.p == pytest.approx(1)
    assert 0.3 < none.opposite <= 1  # the sign of no difference is either


def test_blocks_do_not_overlap():
    assert blocks_of(1000, 400) == [0, 400]
    assert blocks_of(1000, 50) == list(range(0, 500, 50))
    assert blocks_of(1000, 2000) == []
