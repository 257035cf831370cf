"""Inception Score, precision and recall by the rules of ADM's evaluator (guided-diffusion, `evaluator.py`; Dhariwal &
Nichol 2021), where they differ from torch-fidelity's. Its FID and sFID are those of `pforce.metrics.frechet`.

| | ADM | torch-fidelity |
|---|---|---|
| Inception Score | parts of 5,000 images in their order; the last may be shorter | 10 equal parts, shuffled |
| precision, recall | squared distances in half precision, if none overflows | distances in float32 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pforce.metrics.fidelity import NEIGHBOURS, PrecisionRecall, two_sets
from pforce.metrics.frechet import FeatureError, as_features
from pforce.metrics.intervals import GROUPS, Estimate, jackknife, share_interval

SPLIT_SIZE = 5000
"""Images per part of ADM's Inception Score."""
BLOCK = 10_000
"""Rows and columns of a block of distances. Each block is in half precision or in single precision, so it is part of
the definition."""


class _Part:
    """Sums over the images of one part of an Inception Score, by groups of the jackknife."""

    def __init__(self, logits: torch.Tensor, group: NDArray[np.intp], groups: int) -> None:
        log_p = logits.double().log_softmax(dim=1)
        p = log_p.exp()
        of = torch.from_numpy(group)
        self.sizes = np.bincount(group, minlength=groups).astype(np.float64)
        self.p = torch.zeros(groups, logits.shape[1], dtype=torch.float64).index_add_(0, of, p).numpy()
        own = torch.special.xlogy(p, p).sum(dim=1)
        self.own = torch.zeros(groups, dtype=torch.float64).index_add_(0, of, own).numpy()

    def score(self, kept: NDArray[np.bool_]) -> float | None:
        """Score of the kept groups, chosen by a mask (groups,); None where they hold no image of this part."""
        n = self.sizes[kept].sum()
        if n == 0:
            return None
        mean = self.p[kept].sum(axis=0) / n
        shared = float(np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1)), 0).sum())
        return float(np.exp(self.own[kept].sum() / n - shared))


def inception_score(logits: ArrayLike | torch.Tensor, *, split_size: int = SPLIT_SIZE) -> Estimate:
    """Inception Score as ADM's evaluator reports it: the mean over parts of `split_size` images in their order.

    It depends on the order: images that are sorted by class have a lower score, as their parts hold fewer classes. The
    interval is over images: a jackknife of the parts' mean.

    Args:
        logits: (N, classes), without bias.
    """
    values = as_features(logits)
    if not bool(torch.isfinite(values).all()):
        raise FeatureError("logits hold NaN or infinity: the images or the detector are broken; look at the images")
    n = len(values)
    groups = min(GROUPS, n)
    group = np.arange(n) % groups
    parts = [
        _Part(values[first : first + split_size], group[first : first + split_size], groups)
        for first in range(0, n, split_size)
    ]

    def score(mask: NDArray[np.bool_]) -> float:
        found = [part.score(mask[:groups]) for part in parts]
        return float(np.mean([each for each in found if each is not None]))

    return jackknife(score(np.ones(n, dtype=np.bool_)), score, n, groups=groups)


def uneven_split(n: int, split_size: int = SPLIT_SIZE) -> str | None:
    """A note on a shorter last part of an Inception Score; None where all parts have one size."""
    rest = n % split_size
    if n < split_size or not rest:
        return None
    return (
        f"inception_score_adm: the last of its {-(-n // split_size)} parts has {rest:,} images where the others have "
        f"{split_size:,}, and counts as much, as in ADM's evaluator"
    )


def _squared(a: torch.Tensor, b: torch.Tensor, round_to: torch.dtype) -> torch.Tensor:
    """Squared distances (A, B) as |a|² − 2·a·b + |b|², each term and sum rounded to a precision; sums within a term are
    in float32."""

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return values.to(round_to).float()

    a, b = rounded(a), rounded(b)
    of_a, of_b = (rounded(rounded(x.square()).sum(dim=1)) for x in (a, b))
    products = rounded(a @ b.T)
    found = rounded(rounded(of_a[:, None] - rounded(2 * products)) + of_b[None, :])
    return found.clamp(min=0)


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances (A, B) of a block as ADM's evaluator takes them: in half precision, or in float32 where any of
    them overflows there."""
    found = _squared(a, b, torch.float16)
    return found if bool(found.isfinite().all()) else _squared(a, b, torch.float32)


Squared = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _radii(features: torch.Tensor, neighbours: int, squared: Squared) -> torch.Tensor:
    """Squared distance of each image to its k-th neighbour among the others, (N,)."""
    found = []
    for rows in features.split(BLOCK):
        nearest = torch.empty(len(rows), 0)
        for columns in features.split(BLOCK):
            there = torch.cat([nearest, squared(rows, columns)], dim=1)
            nearest = there.topk(min(neighbours + 1, there.shape[1]), dim=1, largest=False).values
        found.append(nearest.amax(dim=1))  # the image itself is the nearest
    return torch.cat(found)


def _blocks(values: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    for first in range(0, len(values), BLOCK):
        part = values[first : first + BLOCK]
        yield slice(first, first + len(part)), part


def precision_recall(
    generated: ArrayLike | torch.Tensor,
    reference: ArrayLike | torch.Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    squared: Squared = squared_distances,
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019), k = 3, as ADM's evaluator computes them.

    A distance counts as within a radius where the two are equal. In half precision many are: neighbouring numbers
    differ by 0.1 %. Intervals are Wilson's. FeatureError where a side has no more than k images.
    """
    a, b = two_sets(generated, reference)
    if min(len(a), len(b)) <= neighbours:
        raise FeatureError(
            f"{len(a)} and {len(b)} images: precision and recall need more than k = {neighbours} of each"
        )
    radii_a, radii_b = (_radii(x.float(), neighbours, squared) for x in (a, b))
    near_a, near_b = torch.zeros(len(a), dtype=torch.bool), torch.zeros(len(b), dtype=torch.bool)
    for rows, of_a in _blocks(a.float()):
        for columns, of_b in _blocks(b.float()):
            distances = squared(of_a, of_b)
            near_a[rows] |= (distances <= radii_b[columns]).any(dim=1)
            near_b[columns] |= (distances <= radii_a[rows][:, None]).any(dim=0)
    shares = (float(near.double().mean()) for near in (near_a, near_b))
    return PrecisionRecall(share_interval(next(shares), len(a)), share_interval(next(shares), len(b)))
