"""Findings of the paper tested here: statements decided by seeds, and the agreement of two tables' orders of rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from pforce.records.looks import Look
from pforce.reproduction import PaperColumn, Statement, Value, metric_of
from pforce.results.frames import Row
from pforce.results.paper import paper_table
from pforce.results.statistics import (
    ENOUGH_SEEDS,
    MOST_SEEDS,
    Claim,
    Interval,
    Verdict,
    decimals_of,
    judge,
    mean_interval,
    pairs_by_seed,
    seeds_to_decide,
    signed,
    values_by_seed,
)

Word = Literal["reproduced", "not reproduced", "undecided"]
WORDS: dict[str, Word] = {
    "better": "reproduced", "worse": "not reproduced", "not distinguishable": "undecided"
}  # fmt: skip
MOST_EXACT = 8
"""Most rows for which all orders are counted: 40,320 orders."""
ORDERS = 20_000
"""Number of random orders for more rows."""


class Finding(NamedTuple):
    """A statement and its decision by the seeds."""

    statement: Statement
    word: Word
    low: Interval | None
    """Mean over its seeds of the value that the statement says is lower; None without seeds."""
    high: Interval | None
    verdict: Verdict
    """Verdict on the difference low − high over common seeds."""
    more_seeds: int | None
    """Number of further seeds that would decide it if difference and spread stay as they are and they had been planned;
    None where it is decided or too many would be needed."""

    @property
    def sentence(self) -> str:
        """The decision in plain words, with numbers, interval, n and p."""
        d, text = self.verdict.difference, self.statement.text
        if self.low is None or self.high is None or d.n < ENOUGH_SEEDS:
            have = f"{d.n} common seed{'' if d.n == 1 else 's'}"
            return f"{text}: undecided ({have}; a decision needs at least {ENOUGH_SEEDS})"
        places = decimals_of(d)
        mean, low, high = (signed(value, places) for value in d[:3])
        numbers = f"{signed(self.low.mean, places)} against {signed(self.high.mean, places)}"
        told = f"{numbers}, difference {mean}, 95 % {low} … {high}, {self.verdict.evidence()}"
        if self.word != "undecided":
            return f"{text}: {self.word} ({told})"
        if self.more_seeds is None:
            return f"{text}: undecided ({told}; more than {MOST_SEEDS} seeds would be needed)"
        return f"{text}: undecided ({told}; {self._cure(d.n + self.more_seeds)} would decide it)"

    def _cure(self, needed: int) -> str:
        """The seeds that would decide an undecided statement, in words.

        Args:
            needed: number of seeds that a single look needs.
        """
        looked = self.verdict.looked
        if not looked:
            return f"about {self.more_seeds} more seeds"
        last = looked[-1]
        if not last.whole and needed <= last.planned:
            return f"the {last.planned} planned seeds"
        return f"about {needed} seeds, planned as such,"  # such that are added now decide nothing


def claims_of(
    frame: pd.DataFrame, rows: Mapping[str, Row], statements: Sequence[Statement], detector: str
) -> list[Claim]:
    """The statements as claims on finished cells.

    Args:
        frame: frame of `pforce.results.runs`.
        rows: name → row.
        detector: detector of distances such as `fd`.
    """

    def side(value: Value) -> tuple[Row, str]:
        return rows[value.row], metric_of(value.metric, detector)

    def by_seed(value: Value) -> dict[int, float]:
        return values_by_seed(frame, *side(value))

    return [
        Claim(side(s.low)[1], s.low.name, s.high.name, by_seed(s.low), by_seed(s.high),
              pairs=pairs_by_seed(frame, side(s.low), side(s.high)))
        for s in statements
    ]  # fmt: skip


def findings(
    frame: pd.DataFrame, rows: Mapping[str, Row], statements: Sequence[Statement], detector: str,
    looks: Sequence[Look] = (),
) -> list[Finding]:  # fmt: skip
    """Decide each statement, with Holm's correction over all of them.

    Args:
        frame: frame of `pforce.results.runs`.
        rows: name → row.
        detector: detector of distances such as `fd`.
        looks: as for `judge`.
    """
    claims = claims_of(frame, rows, statements, detector)
    found = []
    for statement, claim, verdict in zip(statements, claims, judge(claims, looks=looks), strict=True):
        low, high = (
            mean_interval(list(values.values())) if values else None for values in (claim.a_values, claim.b_values)
        )
        word, more = WORDS[verdict.word], None
        if word == "undecided" and verdict.difference.n >= ENOUGH_SEEDS:
            needed = seeds_to_decide(verdict.difference, max(1, verdict.claims))
            more = None if needed is None else max(1, needed - verdict.difference.n)
        found.append(Finding(statement, word, low, high, verdict, more))
    return found


def summary(found: Sequence[Finding]) -> str:
    """Summary of findings: `4 of 6 reproduced, 1 not reproduced, 1 undecided`."""
    counts = {word: sum(each.word == word for each in found) for word in WORDS.values()}
    first = f"{counts['reproduced']} of {len(found)} reproduced"
    return ", ".join([first, *(f"{counts[word]} {word}" for word in ("not reproduced", "undecided") if counts[word])])


class Agreement(NamedTuple):
    """Agreement of two orders of the same rows."""

    tau: float
    """Kendall's τ-b: 1 for the same order, −1 for the reverse."""
    p: float
    """Probability of a τ at least as large if one order were random."""
    rows: int

    @property
    def sentence(self) -> str:
        """The agreement in plain words."""
        return f"order of {self.rows} rows against the paper's: Kendall's τ = {signed(self.tau, 2)} (p = {self.p:.2g})"


def agreement(measured: Sequence[float], paper: Sequence[float]) -> Agreement | None:
    """Kendall's τ of two columns with its permutation p (one-sided, exact up to 8 rows). None for fewer than 3 rows.

    Rows with a missing number are left out.
    """
    pairs = np.array([(a, b) for a, b in zip(measured, paper, strict=True) if np.isfinite(a) and np.isfinite(b)])
    if len(pairs) < 3:
        return None
    a, b = (np.sign(column[:, None] - column[None, :]) for column in pairs.T)
    ties = np.sqrt((a != 0).sum() * (b != 0).sum())
    if ties == 0:
        return None
    n = len(pairs)
    tau = float((a * b).sum() / ties)
    if n <= MOST_EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        draws = np.random.default_rng(0).permuted(np.tile(np.arange(n), (ORDERS, 1)), axis=1)
        orders = np.concatenate([np.arange(n)[None], draws])  # the actual order counts among them
    sums = np.array([(a * b[np.ix_(order, order)]).sum() for order in orders])
    return Agreement(tau, float((sums >= (a * b).sum() - 1e-9).mean()), n)


def paper_values(column: PaperColumn) -> dict[str, float]:
    """The paper's numbers in a column, by row name."""
    table = paper_table(column.table)
    keys = [column.key] if isinstance(column.key, str) else list(column.key)
    names = table[keys].fillna("").astype(str).agg(" ".join, axis=1).str.strip()
    return {name: float(value) for name, value in zip(names, table[column.value], strict=True) if pd.notna(value)}
