"""Fréchet distance between two sets of features, its error bar, and what it would be with endless images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from pforce.base.errors import InputError
from pforce.metrics.intervals import GROUPS, Estimate, jackknife

CHUNK = 1024
"""Rows that are turned into float64 at a time: 16 MB at 2,048 features, where all of 50,000 would be 800 MB."""
ENOUGH_PER_FEATURE = 10
"""Below this many images a feature the covariance is poor and a Fréchet distance says more of n than of the images."""
EXTRAPOLATED_SHARES = (1, 2, 3, 4)
"""Extrapolation fits distances of all images, halves, thirds and quarters of them."""


class FeatureError(InputError, ValueError):
    """Features cannot be measured: too few, not finite, or of different detectors. The message says which."""


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D, divided by n − 1) of feature vectors, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n: int | None
    """Feature vectors; None where a file does not say."""


class MomentSums:
    """Features streamed into float64 sums: n, Σx and Σxxᵀ. What several workers add up, 8·D² bytes of it.

    Sums of float64 do not care in which order or on how many workers they were made, beyond a few units in the
    sixteenth digit.
    """

    def __init__(self, size: int) -> None:
        self.n = 0
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
            self.n += len(values)
            self.total += values.sum(dim=0)
            self.products.addmm_(values.T, values)
        return self

    def merge(self, other: MomentSums) -> Self:
        """Add another worker's sums."""
        self.n += other.n
        self.total += other.total
        self.products += other.products
        return self

    def without(self, other: MomentSums) -> MomentSums:
        """These sums less those of some of their features."""
        rest = MomentSums(len(self.total))
        rest.n = self.n - other.n
        rest.total, rest.products = self.total - other.total, self.products - other.products
        return rest

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Add the sums of all ranks of a torch.distributed group (gloo; NCCL keeps its tensors on GPUs)."""
        packed = torch.cat([torch.tensor([self.n], dtype=torch.float64), self.total, self.products.flatten()])
        dist.all_reduce(packed, group=group)
        size = len(self.total)
        self.n = round(float(packed[0]))
        self.total, self.products = packed[1 : size + 1], packed[size + 1 :].view(size, size)
        return self

    def moments(self) -> Moments:
        """Their mean and covariance. FeatureError for fewer than two feature vectors."""
        if self.n < 2:
            raise FeatureError(f"{self.n} feature vector(s): a covariance needs at least 2 images")
        mean = self.total / self.n
        covariance = (self.products - self.n * torch.outer(mean, mean)) / (self.n - 1)
        return Moments(mean.numpy(), covariance.numpy(), self.n)


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
    """The symmetric square root of a positive semi-definite matrix; rounding below zero is cut off."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


class Reference:
    """One side of many distances, with the square root of its covariance made once."""

    def __init__(self, of: Moments) -> None:
        self.moments = of

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """The square root of the covariance."""
        return _square_root(self.moments.covariance)

    def distance(self, other: Moments) -> float:
        """|μa − μb|² + tr(Σa + Σb − 2·(Σa^½ Σb Σa^½)^½) (Dowson & Landau 1982).

        The symmetric form has real, non-negative eigenvalues, so singular covariances (fewer images than features)
        need no offset and no discarded imaginary part. FeatureError for features of another size.
        """
        a, b = self.moments, other
        if a.mean.shape != b.mean.shape:
            raise FeatureError(_different(a.mean.shape[0], b.mean.shape[0]))
        eigenvalues = np.linalg.eigvalsh(self.root @ b.covariance @ self.root).clip(min=0)
        difference = a.mean - b.mean
        trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(eigenvalues).sum()
        return float(max(difference @ difference + trace, 0.0))


def distance_of_moments(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians, see `Reference.distance`."""
    return Reference(a).distance(b)


def frechet_distance(features_a: ArrayLike | torch.Tensor, features_b: ArrayLike | torch.Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two feature sets (N, D) and (M, D) (Heusel et al. 2017)."""
    return distance_of_moments(moments(features_a), moments(features_b))


Part = Callable[[NDArray[np.bool_]], float]
"""Distance of those features of a set whose place in a mask is True."""


def _by_sums(features: torch.Tensor, reference: Reference) -> Part:
    """By taking the few others out of the sums of all: an eigenvalue problem of D × D a part."""
    total = sums_of(features)

    def part(mask: NDArray[np.bool_]) -> float:
        return reference.distance(total.without(sums_of(features[torch.from_numpy(~mask)])).moments())

    return part


def _by_images(features: torch.Tensor, reference: Reference) -> Part:
    """For fewer images than features: an eigenvalue problem of n × n a part, of their Gram matrix under Σa.

    Σb = XᵀX/(n − 1) of centred X, so that the eigenvalues of Σa^½ Σb Σa^½ that are not zero are those of
    XΣaXᵀ/(n − 1). It is made once for all images; a part is some of its rows and columns, centred again.
    """
    values = features.double().numpy()
    if not np.isfinite(values).all():
        sums_of(features)  # says how many
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

    The reference is taken as it is: its own error is the same for everything that is compared with it. At few images
    a Fréchet distance is larger than it would be at many; the interval is that of the distance at this n.
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
    """Intercept of the distance against 1/n, over disjoint parts of each size.

    Which part an image belongs to does not depend on which images are kept: dealing them anew would add the scatter of
    the dealing to that of the images.
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
    """The distance with endless generated images: the intercept of a line in 1/n (Chong & Forsyth 2020, FID∞).

    Fitted to the distances of all images and the mean distances of their halves, thirds and quarters. The reference
    stays as it is. It may be slightly negative where the two sets are alike. An interval takes `groups` times the time.
    FeatureError for fewer than 16 images.
    """
    values = as_features(features)
    if len(values) < 4 * max(EXTRAPOLATED_SHARES):
        raise FeatureError(f"{len(values)} images: an extrapolation needs at least {4 * max(EXTRAPOLATED_SHARES)}")
    # Any order will do that does not sort the classes into the parts of one size.
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
