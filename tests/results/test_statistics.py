"""Statistics of a comparison. Oracles: scipy's tests, Holm's example by hand, and simulated tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pforce.base.errors import FieldError
from pforce.results import Row
from pforce.results.statistics import (
    Claim,
    Interval,
    Verdict,
    holm,
    judge,
    mean_interval,
    row_claims,
    sentences,
    values_by_seed,
)
from pforce.tracking.reading import numbers_where_all_are


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


def test_what_cannot_be_tested_does_not_weaken_the_others():
    """Holm over the two claims that have seeds, not over three."""
    pairs = ([1.0, 1.1, 1.3], [2.0, 2.4, 2.2]), ([5.0, 5.2, 5.1], [5.1, 5.0, 5.3])
    alone = Claim("fd", "a", "b", {0: 1.0}, {0: 2.0})
    first, nothing, second = judge([claim(*pairs[0]), alone, claim(*pairs[1])])
    p = [stats.ttest_rel(*pair).pvalue for pair in pairs]
    assert (first.p_holm, second.p_holm) == (pytest.approx(2 * min(p)), pytest.approx(max(p)))
    assert (nothing.p_holm, nothing.claims) == (1.0, 2)


SENTENCES = [
    (("worse", 1.2, 0.8, 1.6),
     "fd/openmoji: sigma 0.2 is worse than sigma 0.6 by 1.20 (95 % 0.80 … 1.60, n = 5 seeds, p = 0.012 after Holm over "
     "3 claims)"),
    (("better", -1234.5, -1250.6, -1218.4, 1e-7, 4, 1),
     "fd/openmoji: sigma 0.2 is better than sigma 0.6 by 1234 (95 % 1218 … 1251, n = 4 seeds, p < 0.0001)"),
    (("not distinguishable", -0.0021, -0.0064, 0.0022, 0.3),
     "fd/openmoji: sigma 0.2 and sigma 0.6 are not distinguishable (difference −0.0021, 95 % −0.0064 … 0.0022, "
     "n = 5 seeds, p = 0.3 after Holm over 3 claims)"),
    # Before the correction it was: both bounds keep their sign.
    (("not distinguishable", -0.5, -0.9, -0.1, 0.09),
     "fd/openmoji: sigma 0.2 and sigma 0.6 are not distinguishable (difference −0.50, 95 % −0.90 … −0.10, n = 5 seeds, "
     "p = 0.09 after Holm over 3 claims)"),
    (("better", -0.25, -0.25, -0.25, 0.0),
     "fd/openmoji: sigma 0.2 is better than sigma 0.6 by 0.250 (95 % 0.250 … 0.250, n = 5 seeds, p < 0.0001 after Holm "
     "over 3 claims)"),
    (("not distinguishable", 0.0, 0.0, 0.0, 1.0, 2, 1),
     "fd/openmoji: sigma 0.2 and sigma 0.6 are not distinguishable (difference 0.00, 95 % 0.00 … 0.00, n = 2 seeds, "
     "p = 1)"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "sentence"), SENTENCES)
def test_sentences(found, sentence):
    """Word, mean, low, high; p, n and the number of claims."""
    word, mean, low, high, p, n, claims = (*found, *(0.0123, 5, 3)[len(found) - 4 :])
    of = Claim("fd/openmoji", "sigma 0.2", "sigma 0.6", {}, {})
    assert Verdict(of, Interval(mean, low, high, n), p, p, word, claims).sentence == sentence


@pytest.fixture
def frame() -> pd.DataFrame:
    """Three rows of three seeds; z1 failed; x0 was run twice, the newer run counts."""
    runs = [("x0", 0, 9.9, "FINISHED", 1), ("x0", 0, 5.0, "FINISHED", 2), ("x1", 1, 5.2, "FINISHED", 1),
            ("x2", 2, 5.4, "FINISHED", 1), ("y0", 0, 6.0, "FINISHED", 1), ("y1", 1, 6.3, "FINISHED", 1),
            ("y2", 2, 6.3, "FINISHED", 1), ("z0", 0, 5.5, "FINISHED", 1), ("z1", 1, 1.0, "FAILED", 1),
            ("z2", 2, float("nan"), "FINISHED", 1)]  # fmt: skip
    fingerprint, seed, fd, status, start = zip(*runs, strict=True)
    return pd.DataFrame({"fingerprint": fingerprint, "seed": [float(s) for s in seed], "fd/openmoji": fd,
                         "status": status, "start_time": pd.to_datetime(start, unit="s"),
                         "precision/openmoji": fd})  # fmt: skip


ROWS = [Row({"sigma": sigma, "s": "1"}, [f"{name}{k}" for k in range(3)]) for sigma, name in zip(
    ("0.2", "0.4", "0.6"), "xyz", strict=True)]  # fmt: skip


def test_rows_are_held_against_the_baseline_seed_by_seed(frame):
    against_first = row_claims(frame, ROWS, "fd/openmoji")
    assert [(c.a, c.b, c.smaller_is_better) for c in against_first] == [
        ("sigma 0.4", "sigma 0.2", True), ("sigma 0.6", "sigma 0.2", True),
    ]  # fmt: skip
    assert against_first[0].a_values == {0: 6.0, 1: 6.3, 2: 6.3}
    assert against_first[0].b_values == {0: 5.0, 1: 5.2, 2: 5.4}
    assert against_first[1].a_values == {0: 5.5}
    first, second = sentences(against_first)
    p = stats.ttest_rel([6.0, 6.3, 6.3], [5.0, 5.2, 5.4]).pvalue
    assert first.startswith("fd/openmoji: sigma 0.4 is worse than sigma 0.2 by 1.00 (95 % 0.75 … 1.25, n = 3 seeds")
    assert first.endswith(f"p = {p:.2g})")  # one claim could be tested: nothing to correct for
    assert second == "fd/openmoji: sigma 0.6 and sigma 0.2 are not distinguishable: 1 common seed, a comparison needs 2"
    (chosen,) = row_claims(frame, ROWS, "precision/openmoji", baseline=1, compare=[0])
    assert (chosen.a, chosen.b, chosen.smaller_is_better) == ("sigma 0.2", "sigma 0.4", False)
    assert "is worse than" in sentences([chosen])[0]


def test_one_seed_is_one_sentence(frame):
    one = sentences(row_claims(frame[frame["seed"] == 0], ROWS, "fd/openmoji"))
    assert one == ["fd/openmoji: nothing is compared: that needs 2 seeds that both rows finished"]
    for nothing in (frame.drop(columns="seed"), pd.DataFrame()):
        assert sentences(row_claims(nothing, ROWS, "fd/openmoji")) == one
    assert sentences([]) == []
    assert row_claims(frame, ROWS[:1], "fd/openmoji") == []


def test_more_than_six_rows_besides_the_baseline_make_no_claims(frame):
    rows = [Row({"m": str(k)}, []) for k in range(8)]
    assert row_claims(frame, rows, "fd/openmoji") == []
    assert len(row_claims(frame, rows[:7], "fd/openmoji")) == 6
    assert [c.a for c in row_claims(frame, rows, "fd/openmoji", 2, [7, 0])] == ["m 7", "m 0"]


def test_differences_without_spread_are_no_certainty():
    """Two seeds of a share: the same difference by chance, but for rounding: a sign test, at six seeds 1/32."""
    few = Claim("precision", "a", "b", {0: 0.95, 1: 0.95}, {0: 0.90, 1: 0.90 + 1e-16}, smaller_is_better=False)
    many = Claim(
        "precision", "a", "b", dict.fromkeys(range(6), 1.1), dict.fromkeys(range(6), 1.0), smaller_is_better=False
    )
    (verdict,) = judge([few])
    assert (verdict.word, verdict.p) == ("not distinguishable", 0.5)
    (verdict,) = judge([many])
    assert (verdict.word, verdict.p) == ("better", 1 / 32)


def test_seeds_above_2_to_the_53_stay_apart():
    """As floats two of these would be one; a row without a seed, as of an evaluation, must not make them floats."""
    seeds = [2**53, 2**53 + 1, 2**62]
    runs = numbers_where_all_are(pd.DataFrame({
        "fingerprint": ["a", "b", "c", "d"], "seed": [*map(str, seeds), None], "status": ["FINISHED"] * 4,
        "start_time": [pd.Timestamp(0)] * 4, "val/loss": [1.0, 2.0, float("inf"), 3.0],
    }))  # fmt: skip
    assert values_by_seed(runs, Row({}, ["a", "b", "c", "d"]), "val/loss") == {seeds[0]: 1.0, seeds[1]: 2.0}
