"""Statistics of a comparison: means with intervals over seeds, paired differences, Holm's correction, plain words.

Seeds are pairs: two cells with one training seed share data order, noise and initial weights where they can, so a
difference is taken seed by seed. A table makes at most six claims; over many more a correction finds nothing at
the few seeds that anybody can afford.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from pforce.validation import require

LEVEL = 0.05
MOST_CLAIMS = 6
"""At n = 5 seeds and 6 claims an effect of 3 standard deviations is found in about 86 % of tables."""

Word = Literal["better", "worse", "not distinguishable"]


class Interval(NamedTuple):
    """A mean and its 95 % interval (Student's t over n seeds); NaN bounds for n = 1."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean over seeds with its (1 − level) interval. ValueError without values or for one that is not finite."""
    from scipy import stats  # slow to import: paid by a comparison, not by every command

    array = np.asarray(values, dtype=float)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"values {list(values)}: must be at least one, all finite")
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf(1 - level / 2, n - 1) * array.std(ddof=1) / np.sqrt(n))
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

    @property
    def sentence(self) -> str:
        """`fd/openmoji: ltg is better than srm by 1.20 (95 % 0.80 … 1.60, n = 5 seeds, p = 0.01 over 3 claims)`."""
        c, d = self.claim, self.difference
        if d.n < 2:
            return f"{c.metric}: {c.a} and {c.b} are not distinguishable: {d.n} common seed(s), a comparison needs 2"
        low, high = sorted((abs(d.low), abs(d.high))) if d.low * d.high > 0 else (d.low, d.high)
        told = f"95 % {low:.3g} … {high:.3g}, n = {d.n} seeds, p = {self.p_holm:.2g} after Holm"
        if self.word == "not distinguishable":
            return f"{c.metric}: {c.a} and {c.b} are not distinguishable (difference {d.mean:.3g}, {told})"
        return f"{c.metric}: {c.a} is {self.word} than {c.b} by {abs(d.mean):.3g} ({told})"


def _paired(claim: Claim) -> tuple[Interval, float]:
    """The difference over common seeds and the p-value of its t-test."""
    from scipy import stats

    seeds = sorted(set(claim.a_values) & set(claim.b_values))
    differences = np.array([claim.a_values[seed] - claim.b_values[seed] for seed in seeds])
    if not seeds:
        return Interval(float("nan"), float("nan"), float("nan"), 0), 1.0
    interval = mean_interval(differences.tolist())
    if len(seeds) < 2:
        return interval, 1.0
    spread = differences.std(ddof=1)
    if spread == 0:  # equal seed by seed, or off by a constant: t is 0/0 or infinite
        return interval, 1.0 if interval.mean == 0 else 0.0
    t = interval.mean / (spread / np.sqrt(len(seeds)))
    return interval, float(2 * stats.t.sf(abs(t), len(seeds) - 1))


def judge(claims: Sequence[Claim], level: float = LEVEL) -> list[Verdict]:
    """Verdicts of the claims that a table makes, corrected together so that 5 % of tables without effects err.

    FieldError for more than six claims.
    """
    require(len(claims) <= MOST_CLAIMS, "claims", len(claims), f"at most {MOST_CLAIMS} a table")
    found = [_paired(claim) for claim in claims]
    verdicts = []
    for claim, (difference, p), adjusted in zip(claims, found, holm([p for _, p in found]), strict=True):
        word: Word = "not distinguishable"
        if adjusted <= level:
            word = "better" if (difference.mean < 0) == claim.smaller_is_better else "worse"
        verdicts.append(Verdict(claim, difference, p, adjusted, word))
    return verdicts
