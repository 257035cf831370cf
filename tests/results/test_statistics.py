"""Statistics of a comparison. Oracles: scipy's tests, Holm's example by hand, and simulated tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pforce.results.statistics import Claim, holm, judge, mean_interval
from pforce.validation import FieldError


def claim(a, b, **fields):
    return Claim("fd", "a", "b", dict(enumerate(a)), dict(enumerate(b)), **fields)


def test_the_interval_is_student_s():
    values = [5.2, 5.5, 5.1, 5.9]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 4)
    assert np.isnan(mean_interval([1.0]).low)
    with pytest.raises(ValueError, match="at least one, all finite"):
        mean_interval([])
    with pytest.raises(ValueError, match="all finite"):
        mean_interval([1.0, float("nan")])


def test_holm_by_hand():
    """0.01·4, 0.02·3, 0.03·2 → the running maximum, 0.06; 0.5·1."""
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_claim_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    a, b = generator.normal(5, 1, 6), generator.normal(7, 1, 6)
    (verdict,) = judge([claim(a, b)])
    assert verdict.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert verdict.word == "better"
    assert judge([claim(a, b, smaller_is_better=False)])[0].word == "worse"
    assert "a is better than b by" in verdict.sentence
    assert "n = 6 seeds" in verdict.sentence


def test_only_common_seeds_are_compared():
    (verdict,) = judge([Claim("fd", "a", "b", {0: 1.0, 1: 1.2, 5: 9.0}, {0: 2.0, 1: 2.3, 7: 0.0})])
    assert verdict.difference.n == 2
    assert verdict.difference.mean == pytest.approx(-1.05)
    for few in ({}, {0: 1.0}):
        (alone,) = judge([Claim("fd", "a", "b", few, {0: 2.0})])
        assert alone.word == "not distinguishable"
        assert "a comparison needs 2" in alone.sentence


def test_equal_values_are_not_distinguishable():
    (verdict,) = judge([claim([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])])
    assert (verdict.p, verdict.word) == (1.0, "not distinguishable")


def test_more_than_six_claims_are_refused():
    with pytest.raises(FieldError, match="claims = 7: must be at most 6"):
        judge([claim([1.0, 2.0], [1.0, 2.5])] * 7)


def simulated(effect, tables=1500, seeds=5, claims=6):
    """Words of tables whose first claim has an effect, in standard deviations of the paired difference."""
    generator = np.random.default_rng(1)
    words = []
    for _ in range(tables):
        differences = generator.normal(0, 1, (claims, seeds))
        differences[0] -= effect
        words.append([v.word for v in judge([claim(row, np.zeros(seeds)) for row in differences])])
    return np.array(words)


def test_without_effects_few_tables_call_anything_different():
    """At most 5 % of tables; 1,500 of them leave a standard error of 0.6 %."""
    wrong = (simulated(0.0) != "not distinguishable").any(axis=1).mean()
    assert 0.03 < wrong < 0.05 + 2 * 0.006


def test_an_effect_of_three_standard_deviations_is_found():
    assert (simulated(3.0)[:, 0] == "better").mean() >= 0.8
