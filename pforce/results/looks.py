"""Error that a look at a table's claims may spend, when seeds are added after earlier looks.

With n of N planned seeds, a claim has spent as much of its error as the O'Brien–Fleming-like function of Lan and DeMets
(1983) allows: a(t) = 2 − 2 Φ(z / √t) at t = n / N, almost nothing early and all of it at N. The level of a look is such
that a claim without effect crosses it, and none before, with the probability that the look spends. Boundaries of normal
statistics do not give that at a few seeds. Here it is computed: without effect r = Σd / √(n Σd²), the paired t in
another scale, is a Markov chain for differences d of any one variance, as the signs and ratios of normal numbers do not
depend on their sum of squares.

N is what the first look was planned with. Seeds beyond it, added after a look, narrow the intervals and decide nothing:
whoever may choose their number by what was seen errs more, even where only what is left of the error is spent. A look
that is not at all seeds of the earlier ones spends its share as if they had nothing in common (Bonferroni).
`analysis/looks.py` measures all of this, and what was not chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pforce.records.looks import Look

Array = NDArray[np.float64]
GAMMAS = np.unique(np.concatenate([np.geomspace(1e-8, 1.0, 145), [0.05 / k for k in range(1, 7)]]))
"""Errors of a claim, over all its looks, for which levels are computed: p-values between are interpolated, and those
of tables with up to six claims are among them."""
EDGES = np.concatenate([[0.0], np.geomspace(1e-9, 0.1, 90), np.linspace(0.1, 1.0, 40)[1:]])
"""Edges of the cells of two-sided p in which the chain's distribution is kept: levels are right within 1 %."""


class LookedAt(NamedTuple):
    """A look at one claim."""

    seeds: int
    """Number of common seeds, of the planned ones."""
    reach: int
    """Number of different seeds that were compared so far."""
    planned: int
    """Number of planned seeds."""
    nested: bool = True
    """Whether it has all the seeds of the earlier looks."""

    @property
    def whole(self) -> bool:
        """Whether all planned seeds are there."""
        return self.reach >= self.planned


Looked = tuple[LookedAt, ...]


def spent(fraction: float, gamma: Array | float) -> Array:
    """Error spent at a fraction of the planned seeds, of the error gamma in all: a(t) of Lan and DeMets."""
    if fraction <= 0:
        return np.zeros_like(np.asarray(gamma, dtype=float))
    if fraction >= 1:
        return np.asarray(gamma, dtype=float)
    return np.asarray(2 * special.ndtr(special.ndtri(np.asarray(gamma, dtype=float) / 2) / np.sqrt(fraction)))


def increments(looked: Looked, gamma: Array) -> Iterator[Array]:
    """Error that each look spends: shape (gamma,). They sum to at most gamma."""
    total = np.zeros_like(gamma)
    for look in looked:
        now = np.maximum(total, spent(look.reach / look.planned, gamma))
        yield now - total
        total = now


def _correlation(p: Array, n: int) -> Array:
    """The |r| of n differences whose t-test has this two-sided p."""
    t = -special.stdtrit(n - 1, np.where(p > 0, p, 1.0) / 2)
    return np.asarray(np.where(p > 0, t / np.hypot(np.sqrt(n - 1), t), 1.0))


@lru_cache(maxsize=512)
def _step(n: int) -> Array:
    """Probability of each cell of p at n + 1 seeds, given a cell at n: shape (cells, cells).

    √(n + 1) r′ = √n r cos φ + sin φ, with a density of φ in [−π/2, π/2] that is proportional to cosⁿ⁻¹ φ.
    """
    r = _correlation((EDGES[1:] + EDGES[:-1]) / 2, n)[:, None]
    centre = np.arctan2(1.0, np.sqrt(n) * r)
    bound = _correlation(EDGES, n + 1)[None, :] * np.sqrt((n + 1) / (n * r * r + 1))
    half = np.arccos(np.clip(bound, -1.0, 1.0))

    def below(phi: Array) -> Array:
        sine = np.sin(np.clip(phi, -np.pi / 2, np.pi / 2))
        return np.asarray(0.5 + 0.5 * np.sign(sine) * special.betainc(0.5, n / 2, sine * sine))

    beyond = below(centre + half) - below(centre - half) + below(centre - np.pi + half) + 1 - below(
        centre + np.pi - half
    )  # fmt: skip
    cells, width = np.diff(beyond, axis=1), np.diff(EDGES)
    return np.asarray(cells * (width / (width @ cells)))  # without looks p stays uniform, whatever the grid


@lru_cache(maxsize=512)
def levels(looked: Looked) -> Array:
    """Levels of a claim's looks: the largest p at which it is different there. Shape (looks, GAMMAS)."""
    width = np.diff(EDGES)
    mass, at = np.tile(width, (len(GAMMAS), 1)), 0
    found = np.zeros((len(looked), len(GAMMAS)))
    for number, (look, spends) in enumerate(zip(looked, increments(looked, GAMMAS), strict=True)):
        if not look.nested:
            found[number] = spends
            continue
        for n in range(at, look.seeds) if at else ():
            mass = mass @ _step(n)
        at = look.seeds
        summed = np.concatenate([np.zeros((len(GAMMAS), 1)), np.cumsum(mass, axis=1)], axis=1)
        level = [np.interp(a, row, EDGES) if a > 0 else 0.0 for a, row in zip(spends, summed, strict=True)]
        found[number] = np.maximum.accumulate(level)
        mass = mass * (1 - np.clip((found[number][:, None] - EDGES[:-1]) / width, 0.0, 1.0))
    return found


def level_of(looked: Looked, gamma: float) -> float:
    """Level of the last look of a claim whose error over all looks is gamma."""
    if len(looked) == 1:
        return float(spent(looked[0].reach / looked[0].planned, gamma))
    return float(np.interp(np.log(gamma), np.log(GAMMAS), levels(looked)[-1]))


def corrected(p: float, looked: Looked) -> float:
    """The smallest error over all looks with which a claim is different at its last look, given the p of its t-test:
    p itself where that look is the first, at all planned seeds; 1 where nothing is left."""
    if len(looked) == 1:
        fraction = looked[0].reach / looked[0].planned
        if fraction >= 1:
            return p
        return min(1.0, float(2 * special.ndtr(special.ndtri(p / 2) * np.sqrt(fraction))))
    level = levels(looked)[-1]
    usable = level > 0
    if not usable.any() or p >= 1:
        return 1.0
    logs = np.log(level[usable])
    return float(np.exp(np.interp(np.log(max(p, 1e-300)), logs, np.log(GAMMAS[usable]), right=0.0)))


def looks_at(pairs: Mapping[int, str], looks: Sequence[Look]) -> list[tuple[LookedAt, frozenset[str]]]:
    """The looks at one claim, each with the pairs that decide there, up to the present one. Of pairs beyond the plan
    those with the lowest seeds decide; a look after all planned ones adds nothing.

    Args:
        pairs: seed → name of the compared pair, as `records.looks.pair_of`, of all common seeds.
        looks: looks at the table, in their order.
    """
    present, order = frozenset(pairs.values()), {pair: seed for seed, pair in pairs.items()}
    found: list[tuple[LookedAt, frozenset[str]]] = []
    seen: frozenset[str] = frozenset()
    chain: frozenset[str] = frozenset()
    planned = 0
    for claim in (claim for look in looks for claim in look.claims):
        if not claim & present:
            continue
        planned = planned or next(look.planned for look in looks if claim in look.claims)
        new = sorted(claim - seen, key=lambda pair: (order.get(pair, len(pair) << 64), pair))
        beyond = new[planned - len(seen) :] if found else []
        deciding = claim - frozenset(beyond)
        if len(new) > len(beyond) or not any(deciding == before for _, before in found):
            nested = chain <= deciding
            seen, chain = seen | deciding, deciding if nested else chain
            found.append((LookedAt(len(deciding), len(seen), planned, nested), deciding))
        if claim == present or (found and found[-1][0].whole):
            break
    return found


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def ordinal(number: int) -> str:
    """A look's place in their order, from 0, in words: `first look`, `look 11`."""
    return f"{ORDINALS[number]} look" if number < len(ORDINALS) else f"look {number + 1}"


def as_planned(looked: Looked) -> bool:
    """Whether a claim was looked at once, with all planned seeds, or looks are not counted: its p is the t-test's."""
    return not looked or (len(looked) == 1 and looked[0].whole)


def look_words(looked: Looked, decisive: int, seeds: int, gamma: float) -> str:
    """The last look at a claim in words that follow its p: `; second look, at level 0.031`. Empty for a first look at
    all planned seeds.

    Args:
        decisive: number, from 0, of the look that the p is of.
        seeds: number of common seeds now, those beyond the plan included.
        gamma: error of the claim over all looks.
    """
    if not looked:
        return ""
    last, text = looked[-1], ""
    if not as_planned(looked):
        level = level_of(looked, gamma)
        shown = "< 0.0001" if 0 < level < 1e-4 else f"{level:.2g}"
        part = "" if last.whole else f", at {last.seeds} of {last.planned} planned seeds"
        text += f"; {ordinal(len(looked) - 1)}{part}, at level {shown}"
    if decisive < len(looked) - 1:
        text += f"; this p is of the {ordinal(decisive)}, at {looked[decisive].seeds} seeds"
    elif last.seeds < seeds:
        text += f"; this p is of the {last.seeds} planned seeds"
    return text


def looks_note(looks: Sequence[Look]) -> str:
    """The plan of a table and the looks at it, the present one included: `planned 5 seeds; looked at 3 and 5 seeds`."""
    planned = looks[0].planned
    *first, last = (str(look.seeds) for look in looks)
    reached = f"{', '.join(first)} and {last}" if first else last
    text = f"planned {planned} seeds; looked at {reached} seeds"
    if first and max(look.seeds for look in looks) > planned:
        text += (
            f"; only the {planned} that were planned at the first look decide, further ones narrow the intervals; "
            "a table of fresh seeds alone can decide anew"
        )
    return text
