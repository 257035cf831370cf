"""Statistics of comparisons: means with intervals over seeds, paired differences, Holm's correction, plain words.

Seeds are paired: two cells with the same training seed share data order, noise and initial weights where possible, so
differences are taken per seed. A table makes at most six claims; with many more, the correction finds nothing at an
affordable number of seeds. Looks at fewer seeds than planned, and further looks, spend their share of the error
(`pforce.results.looks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import special  # not scipy.stats: its import takes a second

from pforce.base.errors import require
from pforce.records.looks import Look, pair_of
from pforce.results.frames import Row, finished, row_names, smaller_is_better
from pforce.results.looks import Looked, as_planned, corrected, look_words, looks_at

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
    pairs: Mapping[int, str] | None = None
    """Seed → name of the two cells, as `records.looks.pair_of`, by which earlier looks are known; None counts none."""


class Verdict(NamedTuple):
    """The decision of a claim by the seeds."""

    claim: Claim
    difference: Interval
    """Difference a − b over common seeds."""
    p: float
    """Two-sided p-value of the paired t-test; 1 below two common seeds. After several looks, or before all planned
    seeds are there: the smallest error over all looks with which the claim would be different at one of them."""
    p_holm: float
    word: Word
    claims: int = 1
    """Number of claims that the p-value is corrected for."""
    looked: Looked = ()
    """Looks at the claim, the present one last; empty where they are not counted."""
    decisive: int = 0
    """Number, from 0, of the look that the p-value is of."""

    def evidence(self, noun: str = "") -> str:
        """Number of seeds, p-value and looks: `n = 5 seeds, p = 0.01 after Holm over 3 claims`.

        Args:
            noun: word after the number of claims, with a blank before it.
        """
        p = "p < 0.0001" if self.p_holm < 1e-4 else f"p = {self.p_holm:.2g}"
        over = f" after Holm over {self.claims}{noun}" if self.claims > 1 else ""
        # Which look an undecided claim has come nearest at is of no interest.
        decisive = self.decisive if self.p_holm <= LEVEL else len(self.looked) - 1
        looks = look_words(self.looked, decisive, self.difference.n, LEVEL)
        return f"n = {self.difference.n} seeds, {p}{over}{looks}"

    @property
    def sentence(self) -> str:
        """The decision in plain words, with the interval and n.

        `fd/openmoji: sigma 0.2 is worse than sigma 0.6 by 1.20 (95 % 0.80 … 1.60, n = 5 seeds, p = 0.01 after Holm over
        3 claims)`; of a further look `…; second look, at level 0.031)`. The interval is not corrected for the number of
        claims and looks; p is.
        """
        c, d = self.claim, self.difference
        if d.n < ENOUGH_SEEDS:
            common = f"{d.n} common seed{'' if d.n == 1 else 's'}, a comparison needs {ENOUGH_SEEDS}"
            return f"{c.metric}: {c.a} and {c.b} are not distinguishable: {common}"
        evidence = self.evidence(" claims")
        places = decimals_of(d)
        if self.word == "not distinguishable":
            # Signed, as the interval may hold 0.
            mean, low, high = (signed(value, places) for value in d[:3])
            told = f"95 % {low} … {high}, {evidence}"
            return f"{c.metric}: {c.a} and {c.b} are not distinguishable (difference {mean}, {told})"
        least, most = sorted((abs(d.low), abs(d.high)))
        told = f"95 % {least:.{places}f} … {most:.{places}f}, {evidence}"
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


def _common(claim: Claim) -> list[int]:
    """The common seeds."""
    return sorted(set(claim.a_values) & set(claim.b_values))


def _paired(claim: Claim, seeds: Sequence[int]) -> tuple[Interval, float]:
    """The difference over common seeds and the p-value of its t-test."""
    differences = np.array([claim.a_values[seed] - claim.b_values[seed] for seed in seeds])
    if not len(seeds):
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


class _Found(NamedTuple):
    """A claim before the correction for the number of claims."""

    difference: Interval
    p: float
    looked: Looked = ()
    decisive: int = 0


def _found(claim: Claim, looks: Sequence[Look]) -> _Found:
    """The difference over common seeds, and p corrected for the looks at the claim: the smallest of all looks, as a
    claim that was decided stays so, unless the difference has changed its sign."""
    seeds = _common(claim)
    difference, p = _paired(claim, seeds)
    if claim.pairs is None or len(seeds) < ENOUGH_SEEDS:
        return _Found(difference, p)
    pairs = {seed: claim.pairs[seed] for seed in seeds}
    several = looks_at(pairs, looks)
    looked = tuple(at for at, _ in several)
    smallest = []
    for number, (_, compared) in enumerate(several):
        then = [seed for seed in seeds if pairs[seed] in compared]
        if len(then) < max(ENOUGH_SEEDS, len(compared)):  # a seed of that look has gone
            smallest.append(1.0)
            continue
        there, raw = _paired(claim, then)
        same = there.mean * difference.mean > 0 or len(then) == len(seeds)
        smallest.append(corrected(raw, looked[: number + 1]) if same else 1.0)
    if not smallest:
        return _Found(difference, p)
    # Of equal ones the present look.
    decisive = max(range(len(smallest)), key=lambda number: (-smallest[number], number))
    return _Found(difference, smallest[decisive], looked, decisive)


def _shared_by(claims: Sequence[Claim], found: Sequence[_Found], looks: Sequence[Look]) -> int:
    """Number of claims that share the error: those that are tested; after an earlier look, or before all planned seeds
    are there, also those that will be, and those that were looked at together with one of these."""
    tested = sum(each.difference.n >= ENOUGH_SEEDS for each in found)
    here = {pair for claim in claims for pair in (claim.pairs or {}).values()}
    together = [len(look.claims) for look in looks if any(compared & here for compared in look.claims)]
    planned = all(as_planned(each.looked) for each in found)  # no claim is to come
    return max([tested, *together, *([] if planned else [len(claims)])])


def judge(claims: Sequence[Claim], level: float = LEVEL, looks: Sequence[Look] = ()) -> list[Verdict]:
    """Verdicts of a table's claims, corrected together so that 5 % of tables without effects err, over all looks.

    A claim without two common seeds is not decided and does not count. FieldError for more than six claims.

    Args:
        looks: looks at the table in their order, the present one among them; without any, this is the only one, with
            all planned seeds.
    """
    require(len(claims) <= MOST_CLAIMS, "claims", len(claims), f"at most {MOST_CLAIMS} per table")
    found = [_found(claim, looks) for claim in claims]
    tested = [index for index, each in enumerate(found) if each.difference.n >= ENOUGH_SEEDS]
    shared = _shared_by(claims, found, looks)
    others = [1.0] * (shared - len(tested))
    several = holm([*(found[index].p for index in tested), *others])
    adjusted = dict(zip(tested, several, strict=False))
    verdicts = []
    for index, (claim, (difference, p, looked, decisive)) in enumerate(zip(claims, found, strict=True)):
        p_holm = adjusted.get(index, 1.0)
        word: Word = "not distinguishable"
        if p_holm <= level:
            word = "better" if (difference.mean < 0) == claim.smaller_is_better else "worse"
        verdicts.append(Verdict(claim, difference, p, p_holm, word, shared, looked, decisive))
    return verdicts


def look_of(claims: Sequence[Claim], planned: int) -> Look:
    """The look at these claims: at those that have two common seeds.

    Args:
        planned: number of planned seeds.
    """
    compared = [frozenset((claim.pairs or {})[seed] for seed in _common(claim)) for claim in claims if claim.pairs]
    metrics = ", ".join(dict.fromkeys(claim.metric for claim in claims))
    return Look(planned, tuple(each for each in compared if len(each) >= ENOUGH_SEEDS), metrics)


def values_by_seed(frame: pd.DataFrame, row: Row, metric: str) -> dict[int, float]:
    """Seed → value of a row's finished cells, without values that are not finite."""
    values = finished(frame, row)
    if "seed" not in values or metric not in values:
        return {}
    numbers = values[metric].astype(float).replace([np.inf, -np.inf], np.nan)
    pairs = zip(values["seed"], numbers, strict=True)
    return {int(seed): float(value) for seed, value in pairs if not (pd.isna(seed) or pd.isna(value))}


def pairs_by_seed(frame: pd.DataFrame, a: tuple[Row, str], b: tuple[Row, str]) -> dict[int, str]:
    """Seed → name of what a claim compares there, as `Claim.pairs`.

    Args:
        a, b: row and metric of each side.
    """
    cells = []
    for row, _ in (a, b):
        values = finished(frame, row)
        known = "seed" in values
        pairs = zip(values["seed"], values["fingerprint"], strict=True) if known else ()
        cells.append({int(seed): str(cell) for seed, cell in pairs if not pd.isna(seed)})
    metrics = (a[1], b[1])
    return {seed: pair_of(metrics, (cell, cells[1][seed])) for seed, cell in cells[0].items() if seed in cells[1]}


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
    better, base = smaller_is_better(metric), (rows[baseline], metric)
    return [
        Claim(metric, names[i], names[baseline], values[i], values[baseline], better,
              pairs_by_seed(frame, (rows[i], metric), base))
        for i in others
    ]  # fmt: skip


def sentences(claims: Sequence[Claim], looks: Sequence[Look] = ()) -> list[str]:
    """One sentence per claim; one for all where none has the two common seeds that a comparison needs.

    Args:
        looks: as for `judge`.
    """
    verdicts = judge(claims, looks=looks)
    if claims and all(verdict.difference.n < ENOUGH_SEEDS for verdict in verdicts):
        return [f"{claims[0].metric}: nothing is compared: that needs {ENOUGH_SEEDS} seeds that both rows finished"]
    return [verdict.sentence for verdict in verdicts]
