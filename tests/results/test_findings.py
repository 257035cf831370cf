"""Findings of the paper decided by seeds. Oracles: counts of orders, simulated effects, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pforce.records.looks import Look
from pforce.reproduction import PaperColumn, Statement, Value
from pforce.results import Row
from pforce.results.findings import agreement, claims_of, findings, paper_values, summary
from pforce.results.statistics import Interval, look_of, mean_interval, seeds_to_decide


def frame_of(**rows: list[float]) -> tuple[pd.DataFrame, dict[str, Row]]:
    """Finished runs: row → its fd/openmoji by seed."""
    runs, named = [], {}
    for name, values in rows.items():
        named[name] = Row({"row": name}, [f"{name}{seed}" for seed in range(len(values))])
        for seed, value in enumerate(values):
            runs.append(
                {"fingerprint": f"{name}{seed}", "status": "FINISHED", "seed": seed, "fd/openmoji": value,
                 "start_time": pd.Timestamp(seed, unit="s")}
            )  # fmt: skip
    return pd.DataFrame(runs), named


def below(low: str, high: str) -> Statement:
    return Statement(f"{low} below {high}", Value(low, "fd", low), Value(high, "fd", high))


def test_the_three_words():
    frame, rows = frame_of(a=[1.0, 1.1, 0.9, 1.05], b=[2.0, 2.1, 1.9, 2.02], c=[1.5, 0.6, 1.4, 0.7])
    found = findings(frame, rows, [below("a", "b"), below("b", "a"), below("a", "c")], "openmoji")
    assert [each.word for each in found] == ["reproduced", "not reproduced", "undecided"]
    assert summary(found) == "1 of 3 reproduced, 1 not reproduced, 1 undecided"
    assert found[0].low == mean_interval([1.0, 1.1, 0.9, 1.05])
    assert found[0].verdict.difference.mean == pytest.approx(-0.9925)
    assert found[0].sentence.startswith("a below b: reproduced (1.0")
    assert found[0].more_seeds is None
    assert "undecided" in found[2].sentence


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_common_seeds_decide_nothing(values):
    frame, rows = frame_of(a=[1.0, 2.0], b=[3.0, 4.0], c=values)
    found = findings(frame, rows, [below("a", "c")], "openmoji")
    assert found[0].word == "undecided"
    assert f"{len(values)} common seed" in found[0].sentence
    assert found[0].more_seeds is None


def test_a_statement_may_compare_two_metrics_of_one_row():
    frame, rows = frame_of(a=[1.0, 1.1, 0.9])
    frame["difficulty/pearson_t0.20"] = [0.1, 0.12, 0.11]
    frame["difficulty/pearson_t0.60"] = [0.5, 0.53, 0.52]
    rises = Statement("R rises", Value("a", "difficulty/pearson_t0.20", "R(0.2)"),
                      Value("a", "difficulty/pearson_t0.60", "R(0.6)"))  # fmt: skip
    (found,) = findings(frame, rows, [rises], "openmoji")
    assert found.word == "reproduced"
    assert found.verdict.difference.mean == pytest.approx(-0.4067, abs=1e-4)


def test_tau_and_its_p_are_counts_of_orders():
    assert agreement([1, 2, 3], [10, 20, 30]) == (1.0, pytest.approx(1 / 6), 3)
    assert agreement([3, 2, 1], [10, 20, 30]) == (-1.0, 1.0, 3)
    # One swap of neighbours among 4: of 24 orders 1 + 3 have τ ≥ 2/3.
    assert agreement([1, 3, 2, 4], [1, 2, 3, 4]) == (pytest.approx(2 / 3), pytest.approx(4 / 24), 4)
    assert agreement([1, 2], [1, 2]) is None
    assert agreement([1, 2, 3, math.nan], [1, 2, 3, 4]).rows == 3
    assert agreement([1, 1, 1], [1, 2, 3]) is None, "no order at all"


def test_tau_is_scipys_with_and_without_ties():
    generator = np.random.default_rng(0)
    for n in (4, 7, 12):
        for ties in (False, True):
            a, b = generator.integers(0, 5, (2, n)) if ties else generator.random((2, n))
            expected = stats.kendalltau(a, b, method="auto" if ties else "exact", alternative="greater")
            found = agreement(a.tolist(), b.tolist())
            assert found.tau == pytest.approx(expected.statistic)
            if not ties:
                assert found.p == pytest.approx(expected.pvalue, abs=0.015 if n > 8 else 1e-12)


def test_so_many_seeds_decide_in_four_of_five_simulated_tables():
    """Standard deviation 1, a difference of 1: the number that is promised has the power that is promised."""
    observed = Interval(-1.0, -1.0 - 2.48, -1.0 + 2.48, 3)  # t(0.975, 2) · 1/√3 = 2.484
    n = seeds_to_decide(observed, claims=3)
    generator = np.random.default_rng(0)
    draws = generator.normal(-1.0, 1.0, (4000, n))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / np.sqrt(n))
    power = (2 * stats.t.sf(np.abs(t), n - 1) < 0.05 / 3).mean()
    assert 0.78 < power < 0.9
    fewer = draws[:, : n - 2]
    t = fewer.mean(axis=1) / (fewer.std(axis=1, ddof=1) / np.sqrt(n - 2))
    assert (2 * stats.t.sf(np.abs(t), n - 3) < 0.05 / 3).mean() < 0.8


def test_what_no_number_of_seeds_decides():
    assert seeds_to_decide(Interval(0.0, -1.0, 1.0, 4)) is None
    assert seeds_to_decide(Interval(1e-6, -1.0, 1.0, 4)) is None
    # Without a spread p is that of equal signs, 2^(1 − n): 2^−5 at 6 seeds, 2^−7 < 0.05 / 6 at 8.
    assert seeds_to_decide(Interval(1.0, 1.0, 1.0, 4)) == 6
    assert seeds_to_decide(Interval(-1.0, -1.0, -1.0, 2), claims=6) == 8
    assert seeds_to_decide(Interval(0.0, 0.0, 0.0, 4)) is None


def test_which_seeds_would_decide_a_statement_depends_on_the_plan():
    """Not looked at: more seeds. Early: the planned ones, where they are enough. As planned: a new plan."""
    frame, rows = frame_of(a=[1.0, 1.6, 0.9], b=[1.5, 1.7, 1.6])
    claims = claims_of(frame, rows, [below("a", "b")], "openmoji")

    def sentence(*looks: Look) -> str:
        (found,) = findings(frame, rows, [below("a", "b")], "openmoji", looks)
        assert found.more_seeds == 4
        return found.sentence

    assert sentence().endswith("; about 4 more seeds would decide it)")
    for planned, words in ((3, "about 7 seeds, planned as such,"), (5, "about 7 seeds, planned as such,"),
                           (8, "the 8 planned seeds")):  # fmt: skip
        assert sentence(look_of(claims, planned)).endswith(f"; {words} would decide it)")


def test_the_papers_rows_by_name():
    assert paper_values(PaperColumn("timestep_schedules", "schedule", "fid10k", ""))["ltg"] == 31.4
    main = paper_values(PaperColumn("main", ("model", "sampler"), "fid50k", ""))
    assert main["PFT-XL/2 look_ahead"] == 9.8
    assert main["SiT-XL/2 + REPA"] == 7.9, "a row without a sampler"
