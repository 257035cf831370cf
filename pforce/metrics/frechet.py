"""Fréchet distance between two sets of features, its error bar, and its extrapolation to infinitely many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from pforce.base.errors import InputError
from pforce.base.words import counted
from pforce.metrics.intervals import GROUPS, Estimate, jackknife

CHUNK = 1024
"""Rows converted to float64 at a time: 16 MB at 2,048 features, where all 50,000 rows would take 800 MB."""
ENOUGH_PER_FEATURE = 10
"""Images per feature below which the covariance is poor and a Fréchet distance depends more on n than on the images."""
EXTRAPOLATED_SHARES = (1, 2, 3, 4)
"""Parts into which images are divided for the extrapolation: all images, halves, thirds and quarters."""


TOO_LARGE = (
    "the detector's features is not finite: they are too large for float arithmetic; look at the images, and at the "
    "detector's weights"
)
"""End of the message about features that overflow."""


class FeatureError(InputError, ValueError):
    """Features cannot be measured: they are too few, not finite, or from different detectors. The message says
    which."""


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D, divided by n − 1) of feature vectors, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n: int | None
    """Number of feature vectors; None where a file does not state it."""


class MomentSums:
    """Features summed as a stream in float64: n, Σ(x − c) and Σ(x − c)(x − c)ᵀ, 8·D² bytes, which several workers can
    add up.

    The centre c is the mean of the first features: without it, features far from zero would leave no digit for their
    covariance. The order of the sums and the number of workers change them only by a few units in the sixteenth digit.
    """

    def __init__(self, size: int) -> None:
        self.n = 0
        self.centre = torch.zeros(size, dtype=torch.float64)
        self.total = torch.zeros(size, dtype=torch.float64)
        self.products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, features: torch.Tensor) -> Self:
        """Add features (B, D). FeatureError for a value that is not finite."""
        for part in features.detach().cpu().split(CHUNK):
            values = part.double()
            if not bool(torch.isfinite(values).all()):
                bad = int((~torch.isfinite(values)).any(dim=1).sum())
                raise FeatureError(
                    f"{bad} of {len(features)} feature vectors hold NaN or infinity: the images or the detector are "
                    "broken; look at the images"
                )
            if self.n == 0 and len(values):
                self.centre = values.mean(dim=0)
            self.n += len(values)
            values = values - self.centre
            self.total += values.sum(dim=0)
            self.products.addmm_(values.T, values)
        return self

    def around(self, centre: torch.Tensor) -> MomentSums:
        """These sums around another centre (D,)."""
        found, by = MomentSums(len(centre)), self.centre - centre
        found.n, found.centre, found.total = self.n, centre, self.total + self.n * by
        cross = torch.outer(by, self.total)
        found.products = self.products + cross + cross.T + self.n * torch.outer(by, by)
        return found

    def merge(self, other: MomentSums) -> Self:
        """Add another worker's sums in place."""
        if self.n == 0:
            self.centre = other.centre
        other = other.around(self.centre)
        self.n += other.n
        self.total += other.total
        self.products += other.products
        return self

    def without(self, other: MomentSums) -> MomentSums:
        """These sums minus the sums of some of their features."""
        rest, other = MomentSums(len(self.total)), other.around(self.centre)
        rest.n, rest.centre = self.n - other.n, self.centre
        rest.total, rest.products = self.total - other.total, self.products - other.products
        return rest

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Add the sums of all ranks of a torch.distributed group in place (gloo; NCCL needs tensors on GPUs)."""
        size = len(self.total)
        centres = torch.cat([self.centre * self.n, torch.tensor([self.n], dtype=torch.float64)])
        dist.all_reduce(centres, group=group)
        same = self.around(centres[:size] / centres[size].clamp(min=1))
        self.centre = same.centre
        packed = torch.cat([torch.tensor([self.n], dtype=torch.float64), same.total, same.products.flatten()])
        dist.all_reduce(packed, group=group)
        self.n = round(float(packed[0]))
        self.total, self.products = packed[1 : size + 1], packed[size + 1 :].view(size, size)
        return self

    def moments(self) -> Moments:
        """Mean and covariance of the features. FeatureError for fewer than two feature vectors."""
        if self.n < 2:
            raise FeatureError(f"{counted(self.n, 'feature vector')}: a covariance needs at least 2 images")
        mean = self.total / self.n
        covariance = (self.products - self.n * torch.outer(mean, mean)) / (self.n - 1)
        if not bool(covariance.isfinite().all()):
            raise FeatureError(f"a covariance of {TOO_LARGE}")
        return Moments((self.centre + mean).numpy(), covariance.numpy(), self.n)


def as_features(features: ArrayLike | torch.Tensor) -> torch.Tensor:
    """Features (N, D) as a tensor on the CPU. FeatureError for another shape."""
    tensor = features.detach().cpu() if isinstance(features, torch.Tensor) else torch.from_numpy(np.array(features))
    if tensor.ndim != 2 or len(tensor) < 2:
        raise FeatureError(f"features of shape {tuple(tensor.shape)}: a distance needs (N, D) with N ≥ 2 images")
    return tensor


def sums_of(features: torch.Tensor) -> MomentSums:
    """Sums of features (N, D)."""
    return MomentSums(features.shape[1]).add(features)


def moments(features: ArrayLike | torch.Tensor) -> Moments:
    """Moments of features (N, D). FeatureError for fewer than two rows or a value that is not finite."""
    return sums_of(as_features(features)).moments()


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues rounded below zero become zero."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


class Reference:
    """The fixed side of many distances; the square root of its covariance is computed once."""

    def __init__(self, of: Moments) -> None:
        self.moments = of

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """The square root of the covariance."""
        return _square_root(self.moments.covariance)

    def distance(self, other: Moments) -> float:
        """Fréchet distance |μa − μb|² + tr(Σa + Σb − 2·(Σa^½ Σb Σa^½)^½) (Dowson & Landau 1982).

        The symmetric form has real, non-negative eigenvalues, so singular covariances (fewer images than features) need
        no offset and no discarded imaginary part. FeatureError for features of another size.
        """
        a, b = self.moments, other
        if a.mean.shape != b.mean.shape:
            raise FeatureError(_different(a.mean.shape[0], b.mean.shape[0]))
        eigenvalues = np.linalg.eigvalsh(self.root @ b.covariance @ self.root).clip(min=0)
        difference = a.mean - b.mean
        trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(eigenvalues).sum()
        return float(max(difference @ difference + trace, 0.0))


def distance_of_moments(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians; see `Reference.distance`."""
    return Reference(a).distance(b)


def frechet_distance(features_a: ArrayLike | torch.Tensor, features_b: ArrayLike | torch.Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two feature sets (N, D) and (M, D) (Heusel et al. 2017)."""
    return distance_of_moments(moments(features_a), moments(features_b))


Part = Callable[[NDArray[np.bool_]], float]
"""Function from a mask (N,) to the distance of the features where it is True."""


def _by_sums(features: torch.Tensor, reference: Reference) -> Part:
    """Distances of parts by subtracting the few other features from the sums of all: one D × D eigenvalue problem per
    part."""
    total = sums_of(features)

    def part(mask: NDArray[np.bool_]) -> float:
        return reference.distance(total.without(sums_of(features[torch.from_numpy(~mask)])).moments())

    return part


def _by_images(features: torch.Tensor, reference: Reference) -> Part:
    """Distances of parts where there are fewer images than features: one n × n eigenvalue problem per part, of the
    images' Gram matrix under Σa.

    Σb = XᵀX/(n − 1) for centred X, so the non-zero eigenvalues of Σa^½ Σb Σa^½ are those of XΣaXᵀ/(n − 1). That matrix
    is made once for all images; a part is some of its rows and columns, centred again.
    """
    values = features.double().numpy()
    if not np.isfinite(values).all():
        sums_of(features)  # raises FeatureError with their number
    a = reference.moments
    if values.shape[1:] != a.mean.shape:
        raise FeatureError(_different(a.mean.shape[0], values.shape[1]))
    centred = values - values.mean(axis=0)
    gram = centred @ a.covariance @ centred.T
    trace = float(np.trace(a.covariance))

    def part(mask: NDArray[np.bool_]) -> float:
        rows, among = values[mask], gram[np.ix_(mask, mask)]
        mean, n = rows.mean(axis=0), len(rows)
        among = among - among.mean(axis=0) - among.mean(axis=1)[:, None] + among.mean()
        eigenvalues = np.linalg.eigvalsh(among / (n - 1)).clip(min=0)
        own = float(np.square(rows - mean).sum() / (n - 1))
        difference = a.mean - mean
        return float(max(difference @ difference + trace + own - 2 * np.sqrt(eigenvalues).sum(), 0.0))

    return part


def _parts(features: torch.Tensor, reference: Reference) -> Part:
    return (_by_images if len(features) < features.shape[1] else _by_sums)(features, reference)


def _different(a: int, b: int) -> str:
    return f"features of {a} and {b} numbers cannot be compared: they are of different detectors"


def frechet_estimate(features: ArrayLike | torch.Tensor, reference: Reference, *, groups: int = GROUPS) -> Estimate:
    """Fréchet distance of generated features (N, D) to a reference, with its interval over the generated images.

    The reference counts as exact: its own error is the same for everything that is compared with it. A Fréchet distance
    is larger with few images than with many; the interval is for the distance at this n.
    """
    values = as_features(features)
    part = _parts(values, reference)
    whole = part(np.ones(len(values), dtype=np.bool_))
    if len(values) <= 2:  # leaving one out leaves no covariance
        return Estimate(whole, float("nan"), float("nan"), len(values))
    return jackknife(whole, part, len(values), groups=groups)


def _extrapolated(
    features: torch.Tensor, reference: Reference, shares: Sequence[int], kept: NDArray[np.bool_]
) -> float:
    """Intercept of a line through the mean distances of disjoint parts of each size, over 1/n.

    An image's part does not depend on the kept images: assigning parts anew would add its own scatter to that of the
    images.
    """
    inverse, distances = [], []
    place = np.arange(len(features))
    for share in shares:
        parts = [features[torch.from_numpy(kept & (place % share == k))] for k in range(share)]
        found = [_parts(part, reference)(np.ones(len(part), dtype=np.bool_)) for part in parts]
        distances.append(float(np.mean(found)))
        inverse.append(float(np.mean([1 / len(part) for part in parts])))
    return float(np.polynomial.Polynomial.fit(inverse, distances, 1).convert().coef[0])


def frechet_infinity(
    features: ArrayLike | torch.Tensor, reference: Reference, *, groups: int = GROUPS, interval: bool = True
) -> Estimate:
    """The distance for infinitely many generated images (FID∞): the intercept of a line in 1/n (Chong & Forsyth 2020).

    The line is fitted to the distance of all images and the mean distances of their halves, thirds and quarters. The
    reference is not divided. The value may be slightly negative where the two sets are alike. The interval takes
    `groups` times as long. FeatureError for fewer than 16 images.
    """
    values = as_features(features)
    if len(values) < 4 * max(EXTRAPOLATED_SHARES):
        raise FeatureError(f"{len(values)} images: an extrapolation needs at least {4 * max(EXTRAPOLATED_SHARES)}")
    # Any order will do that does not sort classes into parts.
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    values = values[order]
    all_images = _extrapolated(values, reference, EXTRAPOLATED_SHARES, np.ones(len(values), dtype=np.bool_))
    if not interval:
        return Estimate(all_images, float("nan"), float("nan"), len(values))
    return jackknife(
        all_images,
        lambda mask: _extrapolated(values, reference, EXTRAPOLATED_SHARES, mask),
        len(values),
        groups=groups,
    )
