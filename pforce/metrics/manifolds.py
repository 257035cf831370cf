"""Density and coverage (Naeem et al. 2020), and the sliced Wasserstein distance, of features of two sets of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special

from pforce.metrics.fidelity import two_sets
from pforce.metrics.frechet import FeatureError
from pforce.metrics.intervals import GROUPS, LEVEL, Estimate, jackknife, share_interval

NEIGHBOURS = 5
"""Neighbours of density and coverage, as its authors recommend."""
ROWS = 2000
"""Images whose distances to all others are in memory at a time."""
DIRECTIONS = 512
"""Directions onto which the sliced distance projects features."""
BORDER = 1 - 1e-9
"""Share of a ball's radius within which an image counts as inside: rounding must not move its border inside."""
SLICED_SEED = 0
"""Seed of the directions, which are the same for all images, models and machines."""
AT_ONCE = 32
"""Directions in memory at a time."""

Array = NDArray[np.float64]


class DensityCoverage(NamedTuple):
    """How generated images lie in balls around the reference images."""

    density: Estimate
    """Mean number of balls that a generated image lies in, divided by k; 1 is expected of the reference's own
    distribution. It may be above 1. Interval over the generated images, the reference fixed."""
    coverage: Estimate
    """Share of reference images with a generated image in their ball. Interval over the reference images, the generated
    ones fixed."""


def density_coverage(
    generated: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor, *, neighbours: int = NEIGHBOURS
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020), k = 5: a reference image's ball reaches to its k-th neighbour among the
    other reference images, without its border.

    Unlike precision and recall only reference images have balls, so a few odd generated images do not change them.
    The interval of density is Student's over the generated images, that of coverage is Wilson's. FeatureError where
    there are no more than k reference images.
    """
    a, b = (side.double() for side in two_sets(generated, reference))
    if len(b) <= neighbours:
        raise FeatureError(f"{len(b)} reference images: density and coverage need more than k = {neighbours}")
    balls = torch.zeros(len(a), dtype=torch.float64)
    covered = torch.zeros(len(b), dtype=torch.bool)
    radii = torch.cat([torch.cdist(rows, b).kthvalue(neighbours + 1, dim=1).values for rows in b.split(ROWS)])
    for first in range(0, len(a), ROWS):
        inside = torch.cdist(a[first : first + ROWS], b) < radii * BORDER
        balls[first : first + ROWS] = inside.sum(dim=1)
        covered |= inside.any(dim=0)
    values = balls.numpy() / neighbours
    half = special.stdtrit(len(values) - 1, 1 - LEVEL / 2) * values.std(ddof=1) / np.sqrt(len(values))
    density = Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))
    return DensityCoverage(density, share_interval(float(covered.double().mean()), len(b)))


def directions(size: int, count: int = DIRECTIONS) -> Array:
    """Unit vectors (size, count), uniform on the sphere; equal on all machines."""
    found = np.random.RandomState(SLICED_SEED).standard_normal((count, size)).T
    return found / np.linalg.norm(found, axis=0)


def _projected(values: torch.Tensor, along: Array) -> Iterator[Array]:
    """Values (N, D) along blocks of directions (D, count), each (N, AT_ONCE)."""
    features = values.double().numpy()
    for first in range(0, along.shape[1], AT_ONCE):
        yield features @ along[:, first : first + AT_ONCE]


def _squared_distance(a: Array, b: Array) -> Array:
    """Squared Wasserstein-2 distance of sorted numbers (N, K) and (M, K), for each of K columns.

    The two inverse distribution functions are constant between the multiples of 1/N and 1/M, so their squared
    difference is a sum over these pieces.
    """
    n, m = len(a), len(b)
    ends = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))  # in units of 1/(N·M)
    widths = np.diff(ends, prepend=0) / (n * m)
    pieces = np.square(a[(ends - 1) // m] - b[(ends - 1) // n])
    found: Array = widths @ pieces
    return found


def sliced_distance(
    generated: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor, *, count: int = DIRECTIONS
) -> Estimate:
    """Squared sliced Wasserstein-2 distance (Rabin et al. 2011): the mean, over random directions, of the squared
    distance between the two sets along a direction, in the features' own unit squared.

    It needs no covariance, so it suits few images better than a Fréchet distance does, and it sees more than two
    moments. It is what MIND (Berthet et al. 2026) is built on, without that paper's scale and number of directions. Of
    two sets of one distribution it is above 0, the more the fewer images. The 512 directions are always the same ones;
    the interval over the generated images is a jackknife, the reference fixed.
    """
    a, b = two_sets(generated, reference)
    n = len(a)
    groups = min(GROUPS, n)
    along = directions(a.shape[1], count)
    left_out = np.zeros(groups)
    whole = 0.0
    for of_a, of_b in zip(_projected(a, along), _projected(b, along), strict=True):
        order = np.argsort(of_a, axis=0, kind="stable")
        one, other = np.take_along_axis(of_a, order, axis=0), np.sort(of_b, axis=0)
        whole += float(_squared_distance(one, other).sum())
        for group in range(groups):
            kept = order % groups != group
            part = one.T[kept.T].reshape(one.shape[1], -1).T
            left_out[group] += float(_squared_distance(part, other).sum())
    return jackknife(
        whole / count, lambda mask: float(left_out[np.flatnonzero(~mask[:groups])[0]] / count), n, groups=groups
    )
