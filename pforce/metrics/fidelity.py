"""Kernel distance, precision and recall, and Inception Score: torch-fidelity's numbers with our error bars. The kernel
distance also class by class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pforce.metrics.frechet import FeatureError, as_features
from pforce.metrics.intervals import GROUPS, Estimate, jackknife, share_interval

KERNEL_SUBSETS = 100
KERNEL_SUBSET_SIZE = 1000
NEIGHBOURS = 3
LEAST_PER_CLASS = 10
"""Least generated and reference images of a class whose distance is measured."""
CLASS_GROUPS = 10
"""Groups of the jackknife of a class's images: no more than the least number of them."""
SCORE_SPLITS = 10
SEED = 2020
"""torch-fidelity's seed, so that its numbers and ours are equal."""

Array = NDArray[np.float64]


def two_sets(
    generated: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both feature sets as float32, checked against each other. FeatureError where they cannot be compared."""
    a, b = as_features(generated), as_features(reference)
    if a.shape[1] != b.shape[1]:
        raise FeatureError(
            f"features of {a.shape[1]} and {b.shape[1]} numbers cannot be compared: they are of different detectors"
        )
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        raise FeatureError("features hold NaN or infinity: the images or the detector are broken; look at the images")
    return a, b


class _KernelSums(NamedTuple):
    """Terms of the unbiased squared kernel distance, by groups of the generated images."""

    sizes: Array
    """Images per group, (G,)."""
    within: Array
    """Sums of the kernel over pairs of different generated images, (G, G)."""
    across: Array
    """Sums over pairs of a generated and a reference image, (G,)."""
    reference: float
    """Mean over pairs of different reference images."""
    references: int

    def distance(self, kept: NDArray[np.bool_]) -> float:
        """Distance of the kept groups, chosen by a mask (G,)."""
        n = self.sizes[kept].sum()
        same = self.within[np.ix_(kept, kept)].sum() / (n * (n - 1))
        return float(same + self.reference - 2 * self.across[kept].sum() / (n * self.references))


def _kernel_sums(generated: Array, reference: Array, groups: int) -> _KernelSums:
    width = generated.shape[1]

    def kernel(a: Array, b: Array) -> Array:
        values: Array = (a @ b.T / width + 1) ** 3
        return values

    def of_themselves(a: Array) -> float:
        return float(((np.square(a).sum(axis=1) / width + 1) ** 3).sum())

    parts = [generated[g::groups] for g in range(groups)]
    within = np.array([[kernel(a, b).sum() for b in parts] for a in parts])
    within[np.diag_indices(groups)] -= [of_themselves(a) for a in parts]
    blocks = np.array_split(reference, max(1, len(reference) // 1000))
    pairs = sum(kernel(a, reference).sum() for a in blocks) - of_themselves(reference)
    return _KernelSums(
        np.array([len(a) for a in parts], dtype=np.float64),
        within,
        np.array([kernel(a, reference).sum() for a in parts]),
        float(pairs / (len(reference) * (len(reference) - 1))),
        len(reference),
    )


def kernel_distance(
    generated: ArrayLike | torch.Tensor,
    reference: ArrayLike | torch.Tensor,
    *,
    subset_size: int = KERNEL_SUBSET_SIZE,
    interval: bool = True,
) -> Estimate:
    """Squared maximum mean discrepancy under a cubic kernel (KID, Bińkowski et al. 2018), as torch-fidelity reports it.

    The value is the mean over 100 random subsets of at most `subset_size` images of each side. The interval is over the
    generated images: a jackknife of the unbiased distance of all of them, around that mean; it takes n² kernel values.

    Args:
        generated, reference: features (N, D) and (M, D).
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    a, b = two_sets(generated, reference)
    found = kid_features_to_metric(
        a, b, kid_subsets=KERNEL_SUBSETS, kid_subset_size=min(subset_size, len(a), len(b)), rng_seed=SEED, verbose=False
    )
    value = float(found[KEY_METRIC_KID_MEAN])
    groups = min(GROUPS, len(a))
    if not interval or len(a) - -(-len(a) // groups) < 2:  # at least two images must be left
        return Estimate(value, float("nan"), float("nan"), len(a))
    sums = _kernel_sums(a.double().numpy(), b.double().numpy(), groups)
    around = jackknife(value, lambda mask: sums.distance(mask[:groups]), len(a), groups=groups)
    return around


class ClassDistances(NamedTuple):
    """Kernel distances of the images of each class."""

    mean: Estimate
    """Mean over the classes, each with the same weight; n is the number of their generated images."""
    by_class: dict[int, Estimate]
    """Class → distance; n is the number of its generated images."""
    references: dict[int, int]
    """Class → number of its reference images."""
    left_out: tuple[int, ...]
    """Classes with fewer than `LEAST_PER_CLASS` generated or reference images."""


def class_distances(
    generated: ArrayLike | torch.Tensor, labels: torch.Tensor,
    reference: ArrayLike | torch.Tensor, reference_labels: torch.Tensor,
) -> ClassDistances | None:  # fmt: skip
    """Squared kernel distance (KID, Bińkowski et al. 2018) of the generated images of each class to its reference
    images; None where no class has enough images.

    The estimator is the unbiased one over all images of a class. So classes of 10 and of 200 images compare, the
    expected distance of two sets of one distribution is 0, and a value may be below 0. A Fréchet distance per class
    would be biased upwards, the more the fewer images a class has: by its mean alone by the trace of the covariance
    over n, also where the covariance is taken to be diagonal.

    Intervals are over the generated images, the reference fixed: a jackknife that leaves out a tenth of each class.

    Args:
        generated, reference: features (N, D) and (M, D).
        labels, reference_labels: classes (N,) and (M,).
    """
    a, b = (side.double().numpy() for side in two_sets(generated, reference))
    of_a, of_b = labels.numpy(), reference_labels.numpy()
    if (len(of_a), len(of_b)) != (len(a), len(b)):
        raise FeatureError(f"classes of {len(of_a)} and {len(of_b)} images are given for {len(a)} and {len(b)} images")
    sizes = {int(c): (int((of_a == c).sum()), int((of_b == c).sum())) for c in np.unique([*of_a, *of_b])}
    enough = [c for c, both in sizes.items() if min(both) >= LEAST_PER_CLASS]
    if not enough:
        return None
    sums = {c: _kernel_sums(a[of_a == c], b[of_b == c], CLASS_GROUPS) for c in enough}

    def estimate(several: list[int]) -> Estimate:
        def mean(kept: NDArray[np.bool_]) -> float:
            return float(np.mean([sums[c].distance(kept[:CLASS_GROUPS]) for c in several]))

        images = sum(sizes[c][0] for c in several)
        return jackknife(mean(np.ones(images, dtype=np.bool_)), mean, images, groups=CLASS_GROUPS)

    return ClassDistances(
        estimate(enough), {c: estimate([c]) for c in enough}, {c: sizes[c][1] for c in enough},
        tuple(c for c in sizes if c not in enough),
    )  # fmt: skip


class PrecisionRecall(NamedTuple):
    """Shares of images within the other side's manifold."""

    precision: Estimate
    """Share of generated images near a reference image (realism). Interval over the generated images, the reference
    fixed."""
    recall: Estimate
    """Share of reference images near a generated one (coverage). Interval over the reference images, the generated ones
    fixed."""


def precision_recall(
    generated: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor, *, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019), k = 3, as torch-fidelity computes them.

    Intervals are Wilson's. FeatureError where a side has no more than k images.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    a, b = two_sets(generated, reference)
    if min(len(a), len(b)) <= neighbours:
        raise FeatureError(
            f"{len(a)} and {len(b)} images: precision and recall need more than k = {neighbours} of each"
        )
    found = prc_features_to_metric(
        a, b, prc_neighborhood=neighbours, prc_batch_size=10_000, save_cpu_ram=True, verbose=False
    )
    return PrecisionRecall(
        share_interval(found[KEY_METRIC_PRECISION], len(a)), share_interval(found[KEY_METRIC_RECALL], len(b))
    )


def inception_score(logits: ArrayLike | torch.Tensor, *, splits: int = SCORE_SPLITS) -> Estimate:
    """Inception Score: exp of the mean divergence of an image's class distribution from the mean over images (Salimans
    et al. 2016).

    Takes logits (N, classes). The value is the mean over `splits` parts of shuffled images, as torch-fidelity reports
    it. The interval is over images: a jackknife of the parts' mean, each part scored without a group of its images.
    FeatureError for fewer images than splits.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    values = as_features(logits)
    if len(values) < splits:
        raise FeatureError(f"{len(values)} images: an Inception Score of {splits} splits needs at least as many")
    if not bool(torch.isfinite(values).all()):
        raise FeatureError("logits hold NaN or infinity: the images or the detector are broken; look at the images")

    # Shuffled once, as torch-fidelity does, and not again per part: another order gives another score.
    values = values[torch.from_numpy(np.random.RandomState(SEED).permutation(len(values)))]

    def score(of: torch.Tensor) -> float:
        return float(isc_features_to_metric(of, splits, shuffle=False)[KEY_METRIC_ISC_MEAN])

    value = score(values)
    groups = min(GROUPS, len(values))
    if len(values) - -(-len(values) // groups) < splits:
        return Estimate(value, float("nan"), float("nan"), len(values))
    return jackknife(value, lambda mask: score(values[torch.from_numpy(mask)]), len(values), groups=groups)
