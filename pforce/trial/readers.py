"""What reads the images of a drawing, and where its features are kept: the detector of a request, with pixels where a
metric compares them, and further detectors of the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from pforce.metrics.detectors import Detector, WithPixels
from pforce.metrics.distances import NEAREST
from pforce.records.ledger import Ledger
from pforce.trial.draw import (
    IMAGES,
    Blocks,
    FeatureBlocks,
    Names,
    count_of,
    feature_blocks,
    features_folder,
    folder_of,
    joined,
    read_block,
    to_arrays,
)

Store = tuple[FeatureBlocks, Blocks]
"""The blocks of a drawing: of features, and of images."""


def reader_of(detector: Detector, metrics: Sequence[str]) -> Detector:
    """The detector that reads what metrics need of an image: features, and pixels where any compares them."""
    return WithPixels(detector) if NEAREST in metrics else detector


def store_of(ledger: Ledger, drawing: str, detector: Detector) -> Store:
    """The blocks of a drawing (its digest)."""
    images = Blocks(ledger.storage, f"{folder_of(drawing)}/{IMAGES}")
    return feature_blocks(ledger.storage, drawing, detector), images


class Reader(NamedTuple):
    """A further detector that reads images as they are drawn, and where its features are kept."""

    detector: Detector
    features: Blocks
    names: Names
    """Names of the blocks that were kept before."""

    def read(self, block: int, there: int, images: Tensor) -> None:
        """Read and keep images of a block, as far as its first ones are kept.

        Args:
            there: number of the block's images that come before these.
        """
        before = self.features.block(block, self.names)
        kept = 0 if before is None else count_of(before)
        if not there <= kept < there + len(images):
            return  # kept already; or its first ones are missing, so that it is drawn where they are
        arrays = to_arrays(read_block(self.detector, images[kept - there :]))
        self.features.save(block, arrays if before is None else joined([before, arrays]))


def readers(
    drawing: str, detectors: Sequence[Callable[[], Detector]], ledger: Ledger
) -> list[Reader]:  # fmt: skip
    """Further detectors of a drawing (its digest)."""
    loaded = [detector() for detector in detectors]
    kept = [Blocks(ledger.storage, features_folder(drawing, each)) for each in loaded]
    return [Reader(each, blocks, blocks.names()) for each, blocks in zip(loaded, kept, strict=True)]
