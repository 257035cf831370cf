"""Statistics of a comparison: means with intervals over seeds, paired differences, Holm's correction, plain words.

Seeds are pairs: two cells with one training seed share data order, noise and initial weights where they can, so a
difference is taken seed by seed. A table makes at most six claims; over many more a correction finds nothing at
the few seeds that anybody can afford.
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
"""Relative spread of differences below which they are one number."""
MOST_CLAIMS = 6
"""At n = 5 seeds and 6 claims an effect of 3 standard deviations is found in about 86 % of tables."""
ENOUGH_SEEDS = 2
POWER = 0.8
"""Power of a test: how often it finds an effect that is there."""
MOST_SEEDS = 100
"""Beyond this "more seeds" is no answer."""

Word = Literal["better", "worse", "not distinguishable"]


class Interval(NamedTuple):
    """A mean and its 95 % interval (Student's t over n seeds); NaN bounds for n = 1."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean over seeds with its (1 − level) interval. ValueError without values or for one that is not finite."""
    array = np.asarray(values, dtype=float)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"values {list(values)}: must be at least one, all finite")
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(special.stdtrit(n - 1, 1 - level / 2) * array.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given: claim i holds at level α where it is ≤ α."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[int(index)] = largest
    return adjusted


class Claim(NamedTuple):
    """That `a` is better than `b` in a metric: seed → value for both."""

    metric: str
    a: str
    b: str
    a_values: Mapping[int, float]
    b_values: Mapping[int, float]
    smaller_is_better: bool = True


class Verdict(NamedTuple):
    """What the seeds say of a claim."""

    claim: Claim
    difference: Interval
    """a − b, by seed."""
    p: float
    """Two-sided, of the paired t-test; 1 below two common seeds."""
    p_holm: float
    word: Word
    claims: int = 1
    """How many claims the p-value is corrected for."""

    @property
    def sentence(self) -> str:
        """In plain words, with the interval and n.

        `fd/openmoji: sigma 0.2 is worse than sigma 0.6 by 1.20 (95 % 0.80 … 1.60, n = 5 seeds, p = 0.01 after Holm
        over 3 claims)`. The interval is not corrected for the number of claims; p is.
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
    """Decimals that show two digits of the interval's half width; of a difference without spread three digits."""
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
        # Equal seed by seed, or off by one constant but for rounding: precision is a share of few images, and this
        # happens by chance. t would be 0/0 or infinite; a sign test is what is left.
        return interval, 1.0 if interval.mean == 0 else 2.0 ** (1 - len(seeds))
    t = interval.mean / (spread / np.sqrt(len(seeds)))
    return interval, float(2 * special.stdtr(len(seeds) - 1, -abs(t)))


def judge(claims: Sequence[Claim], level: float = LEVEL) -> list[Verdict]:
    """Verdicts of the claims that a table makes, corrected together so that 5 % of tables without effects err.

    A claim without two common seeds says nothing and does not count. FieldError for more than six claims.
    """
    require(len(claims) <= MOST_CLAIMS, "claims", len(claims), f"at most {MOST_CLAIMS} a table")
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
    """Seed → value of a row's finished cells; what is not finite is left out."""
    values = finished(frame, row)
    if "seed" not in values or metric not in values:
        return {}
    pairs = values[["seed", metric]].astype(float).replace([np.inf, -np.inf], np.nan).dropna()
    return {int(seed): float(value) for seed, value in pairs.itertuples(index=False)}


def seeds_to_decide(difference: Interval, claims: int = 1, level: float = LEVEL) -> int | None:
    """Seeds at which a paired t-test would find a difference of this size and spread in 80 % of cases.

    Args:
        difference: over the seeds that there are: two or more.
        claims: that share the level (Bonferroni, which Holm is never harder than).

    None where more than MOST_SEEDS would be needed, or where there is no difference. Where there is one and no spread,
    as many as the test of signs needs.
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
    """That each row is better than the baseline row in one metric, by seed.

    Args:
        frame: of `pforce.results.runs`. A cell's seed is its parameter `seed`; cells without one are not compared.
        rows: of the table. baseline: number of the row that the others are held against, from 0.
        compare: numbers of the rows that are; by default all others. More than six give no claims.
    """
    others = [index for index in range(len(rows)) if index != baseline] if compare is None else list(compare)
    if len(others) > MOST_CLAIMS:
        return []
    names = row_names(rows)
    values = {index: values_by_seed(frame, rows[index], metric) for index in (baseline, *others)}
    better = smaller_is_better(metric)
    return [Claim(metric, names[i], names[baseline], values[i], values[baseline], better) for i in others]


def sentences(claims: Sequence[Claim]) -> list[str]:
    """A sentence a claim; one for all where none has the two common seeds that a comparison needs."""
    verdicts = judge(claims)
    if claims and all(verdict.difference.n < ENOUGH_SEEDS for verdict in verdicts):
        return [f"{claims[0].metric}: nothing is compared: that needs {ENOUGH_SEEDS} seeds that both rows finished"]
    return [verdict.sentence for verdict in verdicts]
