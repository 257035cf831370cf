"""Statistics of comparisons: means with intervals over seeds, paired differences, Holm's correction, plain words.

Seeds are paired: two cells with the same training seed share data order, noise and initial weights where possible, so
differences are taken per seed. A table makes at most six claims; with many more, the correction finds nothing at an
affordable number of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import special  # not scipy.stats: its import takes a second

from pforce.base.errors import require
from pforce.results.frames import Row, finished, row_names, smaller_is_better

LEVEL = 0.05
ROUNDING = 1e-9
"""Relative spread below which differences count as equal."""
MOST_CLAIMS = 6
"""Most claims per table. At n = 5 seeds and 6 claims, an effect of 3 standard deviations is found in about 86 % of
tables."""
ENOUGH_SEEDS = 2
POWER = 0.8
"""Power of a test: share of tests that find an existing effect."""
MOST_SEEDS = 100
"""Most seeds that are suggested."""

Word = Literal["better", "worse", "not distinguishable"]


class Interval(NamedTuple):
    """A mean and its 95 % interval (Student's t over n seeds); NaN bounds for n = 1."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean over seeds with its (1 − level) interval. ValueError for no values, or for values that are not finite."""
    array = np.asarray(values, dtype=float)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"values {list(values)}: must be at least one, all finite")
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(special.stdtrit(n - 1, 1 - level / 2) * array.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the given order: claim i holds at level α where its value is ≤
    α."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[int(index)] = largest
    return adjusted


class Claim(NamedTuple):
    """The claim that `a` is better than `b` in a metric, with seed → value for both."""

    metric: str
    a: str
    b: str
    a_values: Mapping[int, float]
    b_values: Mapping[int, float]
    smaller_is_better: bool = True


class Verdict(NamedTuple):
    """The decision of a claim by the seeds."""

    claim: Claim
    difference: Interval
    """Difference a − b over common seeds."""
    p: float
    """Two-sided p-value of the paired t-test; 1 below two common seeds."""
    p_holm: float
    word: Word
    claims: int = 1
    """Number of claims that the p-value is corrected for."""

    @property
    def sentence(self) -> str:
        """The decision in plain words, with the interval and n.

        `fd/openmoji: sigma 0.2 is worse than sigma 0.6 by 1.20 (95 % 0.80 … 1.60, n = 5 seeds, p = 0.01 after Holm over
        3 claims)`. The interval is not corrected for the number of claims; p is.
        """
        c, d = self.claim, self.difference
        if d.n < ENOUGH_SEEDS:
            common = f"{d.n} common seed{'' if d.n == 1 else 's'}, a comparison needs {ENOUGH_SEEDS}"
            return f"{c.metric}: {c.a} and {c.b} are not distinguishable: {common}"
        over = f" after Holm over {self.claims} claims" if self.claims > 1 else ""
        p = "p < 0.0001" if self.p_holm < 1e-4 else f"p = {self.p_holm:.2g}"
        places = decimals_of(d)
        if self.word == "not distinguishable":
            # Signed, as the interval may hold 0.
            mean, low, high = (signed(value, places) for value in d[:3])
            told = f"95 % {low} … {high}, n = {d.n} seeds, {p}{over}"
            return f"{c.metric}: {c.a} and {c.b} are not distinguishable (difference {mean}, {told})"
        least, most = sorted((abs(d.low), abs(d.high)))
        told = f"95 % {least:.{places}f} … {most:.{places}f}, n = {d.n} seeds, {p}{over}"
        return f"{c.metric}: {c.a} is {self.word} than {c.b} by {abs(d.mean):.{places}f} ({told})"


def decimals_of(d: Interval) -> int:
    """Decimals that show two digits of the interval's half width, or three digits of a difference without spread."""
    half = (d.high - d.low) / 2
    # A constant difference leaves a half width of rounding errors.
    size, digits = (half, 1) if half > 1e-9 * abs(d.mean) else (abs(d.mean), 2)
    return min(12, max(0, digits - math.floor(math.log10(size)))) if size else 2


def signed(value: float, places: int) -> str:
    """A number with a true minus sign."""
    return f"{value:.{places}f}".replace("-", "−")


def _paired(claim: Claim) -> tuple[Interval, float]:
    """The difference over common seeds and the p-value of its t-test."""
    seeds = sorted(set(claim.a_values) & set(claim.b_values))
    differences = np.array([claim.a_values[seed] - claim.b_values[seed] for seed in seeds])
    if not seeds:
        return Interval(float("nan"), float("nan"), float("nan"), 0), 1.0
    interval = mean_interval(differences.tolist())
    if len(seeds) < ENOUGH_SEEDS:
        return interval, 1.0
    spread = differences.std(ddof=1)
    if spread <= ROUNDING * abs(interval.mean):
        # The differences are zero or constant up to rounding, which happens by chance: precision, for example, is a
        # share of few images. t would be 0/0 or infinite, so a sign test is used.
        return interval, 1.0 if interval.mean == 0 else 2.0 ** (1 - len(seeds))
    t = interval.mean / (spread / np.sqrt(len(seeds)))
    return interval, float(2 * special.stdtr(len(seeds) - 1, -abs(t)))


def judge(claims: Sequence[Claim], level: float = LEVEL) -> list[Verdict]:
    """Verdicts of a table's claims, corrected together so that 5 % of tables without effects err.

    A claim without two common seeds is not decided and does not count. FieldError for more than six claims.
    """
    require(len(claims) <= MOST_CLAIMS, "claims", len(claims), f"at most {MOST_CLAIMS} per table")
    found = [_paired(claim) for claim in claims]
    tested = [index for index, (difference, _) in enumerate(found) if difference.n >= ENOUGH_SEEDS]
    adjusted = dict(zip(tested, holm([found[index][1] for index in tested]), strict=True))
    verdicts = []
    for index, (claim, (difference, p)) in enumerate(zip(claims, found, strict=True)):
        corrected = adjusted.get(index, 1.0)
        word: Word = "not distinguishable"
        if corrected <= level:
            word = "better" if (difference.mean < 0) == claim.smaller_is_better else "worse"
        verdicts.append(Verdict(claim, difference, p, corrected, word, len(tested)))
    return verdicts


def values_by_seed(frame: pd.DataFrame, row: Row, metric: str) -> dict[int, float]:
    """Seed → value of a row's finished cells, without values that are not finite."""
    values = finished(frame, row)
    if "seed" not in values or metric not in values:
        return {}
    numbers = values[metric].astype(float).replace([np.inf, -np.inf], np.nan)
    pairs = zip(values["seed"], numbers, strict=True)
    return {int(seed): float(value) for seed, value in pairs if not (pd.isna(seed) or pd.isna(value))}


def seeds_to_decide(difference: Interval, claims: int = 1, level: float = LEVEL) -> int | None:
    """Number of seeds at which a paired t-test would find a difference of this size and spread in 80 % of cases.

    Args:
        difference: difference over the present seeds, at least two.
        claims: number of claims that share the level (Bonferroni, which is never easier than Holm).
        level: significance level.

    None where more than MOST_SEEDS would be needed, or where there is no difference. For a difference without spread,
    the number that the sign test needs.
    """
    half = (difference.high - difference.low) / 2
    spread = half * math.sqrt(difference.n) / float(special.stdtrit(difference.n - 1, 1 - LEVEL / 2))
    if difference.mean == 0 or not math.isfinite(spread):
        return None
    if spread <= ROUNDING * abs(difference.mean):
        return max(difference.n, 1 + math.ceil(math.log2(claims / level)))  # p is 2^(1 − n)
    for n in range(max(ENOUGH_SEEDS, difference.n), MOST_SEEDS + 1):
        bound = special.stdtrit(n - 1, 1 - level / claims / 2)
        if 1 - special.nctdtr(n - 1, abs(difference.mean) / spread * math.sqrt(n), bound) >= POWER:
            return n
    return None


def row_claims(
    frame: pd.DataFrame, rows: Sequence[Row], metric: str, baseline: int = 0, compare: Sequence[int] | None = None
) -> list[Claim]:
    """The claims that each row is better than the baseline row in one metric, by seed.

    Args:
        frame: frame of `pforce.results.runs`. A cell's seed is its parameter `seed`; cells without one are left out.
        rows: rows of the table.
        metric: name of the metric.
        baseline: number of the row that the others are compared with, from 0.
        compare: numbers of the rows that are compared; by default all others. More than six give no claims.
    """
    others = [index for index in range(len(rows)) if index != baseline] if compare is None else list(compare)
    if len(others) > MOST_CLAIMS:
        return []
    names = row_names(rows)
    values = {index: values_by_seed(frame, rows[index], metric) for index in (baseline, *others)}
    better = smaller_is_better(metric)
    return [Claim(metric, names[i], names[baseline], values[i], values[baseline], better) for i in others]


def sentences(claims: Sequence[Claim]) -> list[str]:
    """One sentence per claim; one for all where none has the two common seeds that a comparison needs."""
    verdicts = judge(claims)
    if claims and all(verdict.difference.n < ENOUGH_SEEDS for verdict in verdicts):
        return [f"{claims[0].metric}: nothing is compared: that needs {ENOUGH_SEEDS} seeds that both rows finished"]
    return [verdict.sentence for verdict in verdicts]
