"""Error bars over images: how much a metric would vary on other images of the same kind.

They do not cover other training seeds; those intervals are in `pforce.results.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats: its import takes a second

LEVEL = 0.05
GROUPS = 23
"""Groups of the grouped jackknife. A prime number, so that each group mixes classes: image i has class i mod the number
of classes."""
RESAMPLES = 2000
COUNTS_AT_ONCE = 2**23
"""Resample counts in memory at a time (64 MiB); 50,000 images × 2,000 resamples would take 800 MB."""

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number, its 95 % interval over images, and the number of images."""

    value: float
    low: float
    high: float
    n: int


def jackknife(
    value: float, without: Callable[[NDArray[np.bool_]], float], n: int, *, groups: int = GROUPS, level: float = LEVEL
) -> Estimate:
    """A statistic of n images with its interval by the delete-a-group jackknife (Student's t over the groups).

    Image i belongs to group i mod the number of groups; with fewer images than groups, each image is a group. It is a
    jackknife, not a bootstrap, because images drawn twice make a Fréchet distance larger.

    Args:
        value: the statistic of all images.
        without: function from a mask (n,) to the statistic of the images where it is True.
    """
    groups = min(groups, n)
    group = np.arange(n) % groups
    left_out = np.array([without(group != g) for g in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum())
    half = float(special.stdtrit(groups - 1, 1 - level / 2) * error)
    return Estimate(value, value - half, value + half, n)


def bootstrap(
    values: Floats,
    resampled: Callable[[Floats], Floats],
    n: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Estimate]:
    """Percentile intervals over n images of K statistics, from one set of resamples.

    For statistics that are functions of sums over images. The counts are drawn once for all statistics, because drawing
    them takes longer than computing the statistics.

    Args:
        values: statistics of all images, (K,).
        resampled: function from the counts (R, n) of each image in R resamples to their statistics (R, K); NaN where
            one is undefined.
    """
    generator, parts, done = np.random.default_rng(seed), [], 0
    while done < resamples:
        rows = min(resamples - done, max(1, COUNTS_AT_ONCE // n))
        drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        parts.append(resampled(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)))
        done += rows
    estimates = []
    for value, column in zip(values, np.concatenate(parts).T, strict=True):
        defined = column[np.isfinite(column)]
        low, high = np.quantile(defined, (level / 2, 1 - level / 2)) if len(defined) else (np.nan, np.nan)
        estimates.append(Estimate(float(value), float(low), float(high), n))
    return estimates


def share_interval(share: float, n: int, level: float = LEVEL) -> Estimate:
    """Wilson's interval of a share of n images (Wilson 1927): never outside [0, 1], also at 0 and 1."""
    z = float(special.ndtri(1 - level / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(share, float(max(0.0, centre - half)), float(min(1.0, centre + half)), n)


def auc(first: Floats, second: Floats, groups: NDArray[np.integer] | None = None, level: float = LEVEL) -> Estimate:
    """The probability that a value of `first` is smaller than one of `second`, equal ones counting half: the area under
    the ROC curve, or Mann and Whitney's U / (m·n).

    The interval is DeLong's (DeLong et al. 1988), over both sets of values, with those of a group taken together
    (Obuchowski 1997), on the logit scale, which keeps it within [0, 1] (Pepe 2003). Where that variance is 0 (sets that
    do not overlap, or equal values only) it is Wilson's of the smaller set's size, as no variance exceeds θ(1 − θ) /
    min(m, n) (Birnbaum & Klose 1957).

    Args:
        first, second: values (m,) and (n,), at least two of each.
        groups: group of each value of `second`, (n,), numbers from 0 on without gaps, for values that are not
            independent; by default each is a group.
    """
    of_first = 1 - _share_below(second, first)
    of_second = _share_below(first, second)
    value = float(of_first.mean())
    sums = np.bincount(np.arange(len(second)) if groups is None else groups, weights=of_second - value)
    fewest = min(len(first), len(sums))
    across = float(np.square(sums).sum() / len(second) ** 2) * len(sums) / max(1, len(sums) - 1)
    variance = float(of_first.var(ddof=1) / len(first)) + across
    if fewest < 2 or variance <= 0 or not 0 < value < 1:
        return share_interval(value, fewest, level)._replace(n=len(first))
    half = float(special.ndtri(1 - level / 2)) * np.sqrt(variance) / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array((-half, half)))
    return Estimate(value, float(low), float(high), len(first))


def _share_below(values: Floats, at: Floats) -> Floats:
    """For each of `at`, the share of values below it, equal ones counting half."""
    ordered = np.sort(values)
    both = np.searchsorted(ordered, at, "left") + np.searchsorted(ordered, at, "right")
    found: Floats = both / (2 * len(values))
    return found
