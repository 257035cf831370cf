"""Memorisation: whether generated images lie nearer to the training images than held-out images do.

For each image, the distance to the nearest training image: in a detector's features (Euclidean), and in pixels (root
mean square difference, in units of the range 0…255). Held-out images of the same data set are measured against the same
training images, because data sets have near-duplicates: a distance says nothing by itself.

- AUC: the probability that a generated image is nearer to its nearest training image than a held-out one is to its own.
  0.5: not distinguishable from held-out images; above: nearer.
  The interval takes held-out images that are variants of one drawing together, as they are not independent: those that
  are nearer to each other than to any training image.
- Copies: the share of generated images that are at most as far as the 1 % of held-out images that are nearest. A model
  that draws images like the held-out ones has 1 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce.metrics.features import FeatureSet
from pforce.metrics.frechet import FeatureError
from pforce.metrics.intervals import Estimate, Floats, auc, share_interval
from pforce.metrics.names import MEMORISATION, PIXEL_MEMORISATION, MetricName, read_names

HELD_OUT_SHARE = 0.01
"""Share of the held-out images that the threshold of copies lets through."""
LEAST = 20
"""Least number of generated and of held-out images: with fewer, DeLong's variance is a guess."""
SHOWN_PAIRS = 8
"""Pairs of the figure, in features and in pixels."""
TRAINING_AT_ONCE, QUERIES_AT_ONCE = 1024, 2048
"""Rows and columns of the matrix of distances that is in memory (16 MiB)."""
SPACES = ("features", "pixels")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """The training images that generated ones are compared with, and the held-out images that are the measure."""

    held_out: FeatureSet
    """Features and pixels of held-out images."""
    images: int
    """Number of training images."""
    blocks: Callable[[], Iterator[FeatureSet]]
    """Function that reads the training images, block by block, with features and pixels; none is held in memory."""
    device: torch.device = CPU
    """Device that compares them; one that computes in float64."""


class Nearness(NamedTuple):
    """What the distances in one space say."""

    auc: Estimate
    copies: Estimate
    """Share of copies; Wilson's interval over the generated images, the threshold fixed."""
    threshold: float
    """Distance up to which an image counts as a copy."""


class Memorisation(NamedTuple):
    """Memorisation in a detector's features and in pixels, with arrays for the figure."""

    features: Nearness
    pixels: Nearness
    held_out_images: int
    training_images: int
    arrays: dict[str, NDArray[np.generic]]
    """`features` and `pixels`: distances of generated images (N,); `held_out_features`, `held_out_pixels` (M,);
    `families_features`, `families_pixels`: family of each held-out image (M,);
    `nearest_features`, `nearest_pixels`: numbers of the nearest training images (N,); and of the eight nearest pairs in
    each space, the nearest first: `SPACE_generated`, `SPACE_training` (8, 3, h, w) uint8, `SPACE_pairs` (8, 2), their
    distances in features and in pixels."""


class Nearest:
    """A search for the nearest of many rows, of which one block is in memory at a time.

    Distances are exact: those of a block are ordered by ‖a‖² + ‖b‖² − 2ab in float64, and the nearest one's is computed
    anew from the difference, so that a copy has the distance 0. Of equally near rows the first counts.

    Args:
        queries: rows (N, D), of any type.
        device: device of the computation; results are on the CPU.
    """

    def __init__(self, queries: Tensor, device: torch.device = CPU) -> None:
        self.queries, self.device = queries.flatten(1), device
        self.squared = torch.full((len(queries),), torch.inf, dtype=torch.float64)
        """Squared distance to the nearest row so far, (N,)."""
        self.index = torch.zeros(len(queries), dtype=torch.int64)
        """Number of the nearest row so far, (N,)."""
        self.seen = 0

    def look(self, block: Tensor) -> Tensor:
        """Compare with a block of rows (B, D). Returns a mask (N,) of the queries whose nearest row is now in it."""
        rows = block.flatten(1).to(self.device).double()
        norms, changed = rows.square().sum(dim=1), torch.zeros(len(self.queries), dtype=torch.bool)
        for first in range(0, len(self.queries), QUERIES_AT_ONCE):
            part = slice(first, first + QUERIES_AT_ONCE)
            queries = self.queries[part].to(self.device).double()
            # ‖query‖² is the same for all rows, so it is left out of the order.
            at = (norms - 2 * queries @ rows.T).argmin(dim=1)
            squared = (queries - rows[at]).square().sum(dim=1).cpu()
            changed[part] = squared < self.squared[part]
            self.index[part] = torch.where(changed[part], self.seen + at.cpu(), self.index[part])
            self.squared[part] = torch.minimum(squared, self.squared[part])
        self.seen += len(rows)
        return changed

    def distances(self, per: int = 1) -> Floats:
        """Root of the squared distances, each divided by `per` before, (N,)."""
        found: Floats = (self.squared / per).sqrt().numpy()
        return found


class _Pairs:
    """The nearest training image of each generated one in one space, together with its features and pixels."""

    def __init__(self, generated: FeatureSet, space: str, device: torch.device) -> None:
        self.generated, self.space = generated, space
        self.search = Nearest(_rows(generated, space), device)
        self.features, self.pixels = torch.zeros_like(generated.features), torch.zeros_like(_pixels(generated))

    def look(self, block: FeatureSet) -> None:
        before = self.search.seen
        changed = self.search.look(_rows(block, self.space))
        at = self.search.index[changed] - before
        self.features[changed], self.pixels[changed] = block.features[at], _pixels(block)[at]

    def arrays(self, distances: Floats) -> dict[str, NDArray[np.generic]]:
        """The nearest pairs, as arrays under the names of `Memorisation.arrays`."""
        order = torch.from_numpy(np.argsort(distances, kind="stable")[:SHOWN_PAIRS])
        drawn, found = _pixels(self.generated)[order], self.pixels[order]
        in_features = (self.generated.features[order].double() - self.features[order].double()).norm(dim=1)
        in_pixels = (drawn.double() - found.double()).flatten(1).square().mean(dim=1).sqrt() / 255
        return {
            f"nearest_{self.space}": self.search.index.numpy().astype(np.int32),
            f"{self.space}_generated": drawn.numpy(),
            f"{self.space}_training": found.numpy(),
            f"{self.space}_pairs": torch.stack([in_features, in_pixels], dim=1).numpy(),
        }


def _pixels(of: FeatureSet) -> Tensor:
    assert of.pixels is not None  # read by `WithPixels`
    return of.pixels


def _rows(of: FeatureSet, space: str) -> Tensor:
    return of.features if space == "features" else _pixels(of)


def _distances(search: Nearest, space: str) -> Floats:
    """Euclidean distances in features; in pixels, root mean squares in units of the range 0…255."""
    return search.distances() if space == "features" else search.distances(search.queries.shape[1]) / 255


def _check(generated: FeatureSet, training: Training) -> None:
    """Raise FeatureError where the sides cannot be compared."""
    mine, theirs = _pixels(generated).shape[1:], _pixels(training.held_out).shape[1:]
    if mine != theirs:
        raise FeatureError(
            f"images of {mine[2]}×{mine[1]} pixels cannot be compared with training images of {theirs[2]}×{theirs[1]}"
        )
    for features in (generated.features, training.held_out.features):
        if not bool(torch.isfinite(features).all()):
            raise FeatureError("features hold NaN or infinity: the images or the detector are broken; look at them")


def families(search: Nearest) -> NDArray[np.int32]:
    """The family of each query of a finished search, (N,): queries that are nearer to each other than one of them is to
    any row, and those that they are linked with through others."""
    from scipy.sparse import coo_matrix  # here, as the import takes a while
    from scipy.sparse.csgraph import connected_components

    links = []
    count = len(search.queries)
    for first in range(0, count, TRAINING_AT_ONCE):
        rows = search.queries[first : first + TRAINING_AT_ONCE].double()
        for other in range(0, count, QUERIES_AT_ONCE):
            others = search.queries[other : other + QUERIES_AT_ONCE].double()
            near = torch.cdist(rows, others).square() < search.squared[first : first + TRAINING_AT_ONCE, None]
            links.append(near.nonzero() + torch.tensor([first, other]))
    pairs = torch.cat(links).numpy()
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    found: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return found


def nearness(generated: Floats, held_out: Floats, groups: NDArray[np.integer] | None = None) -> Nearness:
    """AUC, share of copies and threshold from the distances of generated (N,) and held-out images (M,).

    Args:
        groups: family of each held-out image, (M,); by default each is one.
    """
    threshold = float(np.quantile(held_out, HELD_OUT_SHARE))
    copies = share_interval(float((generated <= threshold).mean()), len(generated))
    return Nearness(auc(generated, held_out, groups), copies, threshold)


def memorisation(
    generated: FeatureSet, training: Training, progress: Callable[[float], None] = lambda share: None
) -> Memorisation:
    """Measure how near generated images are to the training images.

    The training images are read once. In memory are the generated images' features and pixels, three times, and one
    block of the training images.

    Args:
        progress: callback that gets the share of the training images that is done.

    Raises:
        FeatureError: images of another size, or features that are not finite.
    """
    _check(generated, training)
    pairs = {space: _Pairs(generated, space, training.device) for space in SPACES}
    held_out = {space: Nearest(_rows(training.held_out, space), training.device) for space in SPACES}
    done = 0
    for block in training.blocks():
        for space in SPACES:
            pairs[space].look(block)
            held_out[space].look(_rows(block, space))
        done += len(block)
        progress(min(1.0, done / training.images))
    found: dict[str, Nearness] = {}
    arrays: dict[str, NDArray[np.generic]] = {}
    for space in SPACES:
        near, far = _distances(pairs[space].search, space), _distances(held_out[space], space)
        groups = families(held_out[space])
        found[space] = nearness(near, far, groups)
        arrays |= {space: near, f"held_out_{space}": far, f"families_{space}": groups, **pairs[space].arrays(near)}
    return Memorisation(found["features"], found["pixels"], len(training.held_out), done, arrays)


def metrics_of(found: Memorisation, detector: str, images: int) -> dict[str, float]:
    """The numbers under their names, with intervals, thresholds and counts."""
    values: dict[str, float] = {}
    for space, kinds in zip(SPACES, (MEMORISATION, PIXEL_MEMORISATION), strict=True):
        near: Nearness = getattr(found, space)
        for kind, estimate in zip(kinds, (near.auc, near.copies), strict=True):
            name = MetricName(kind, detector if space == "features" else None)
            low, high = name.bounds
            values |= {str(name): estimate.value, str(low): estimate.low, str(high): estimate.high}
            if kind == kinds[1]:
                values[str(name.with_beside("threshold"))] = near.threshold
            values |= {
                str(name.with_beside("images")): float(images),
                str(name.with_beside("reference_images")): float(found.training_images),
                str(name.with_beside("held_out_images")): float(found.held_out_images),
            }
    return values


class Distinct(NamedTuple):
    """A statement by which generated images are distinguishable from held-out ones."""

    name: str
    """Name of the AUC."""
    says: str
    """NEARER, FARTHER or COPIES."""
    auc: float
    numbers: str
    """AUC with its interval, and the share of copies, as text."""


NEARER = "generated images are nearer to the training images than held-out ones are: look for copies"
FARTHER = "on the whole, generated images are farther from the training images than held-out ones are"
COPIES = "more generated images than held-out ones lie within the threshold of a training image: look for copies"


def distinct(metrics: Mapping[str, float]) -> list[Distinct]:
    """What distinguishes generated images from held-out ones, among metrics by name.

    That is an AUC whose interval does not hold 0.5, or a share of copies whose interval lies above that of the held-out
    images' share, 1 %. A few copies among many other images are seen by their share only.
    """
    found = []
    for text, name in read_names(metrics).items():
        if name.kind not in (MEMORISATION[0], PIXEL_MEMORISATION[0]) or name.beside is not None:
            continue
        value, low, high = (metrics.get(str(each), np.nan) for each in (name, *name.bounds))
        kinds = MEMORISATION if name.detector else PIXEL_MEMORISATION
        share = MetricName(kinds[1], name.detector)
        copies, least, most = (metrics.get(str(each), np.nan) for each in (share, *share.bounds))
        held_out = metrics.get(str(share.with_beside("held_out_images")), np.nan)
        numbers = f"{value:.3f}, {low:.3f} … {high:.3f}"
        if not np.isnan(copies):
            numbers += f"; copies {copies:.1%}, {least:.1%} … {most:.1%}"
        usual = share_interval(HELD_OUT_SHARE, int(held_out)).high if held_out >= 1 else np.nan
        # Each is false where a number is NaN.
        says = {NEARER: low > 0.5, COPIES: least > usual, FARTHER: high < 0.5}
        found += [Distinct(text, each, value, numbers) for each, holds in says.items() if holds]
    return found
