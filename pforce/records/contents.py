"""What measurements depend on, by content, as plain data: sets of images, and rules for classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pforce.base.errors import ConfigError
from pforce.base.files import digest
from pforce.metrics.distances import NEAREST


def image_set(data: str, split: str, images: int) -> dict[str, Any]:
    """Images of a data set's split, spread evenly over it, as plain data with the manifest's hash."""
    return {"data": data, "split": split, "images": int(images)}


def training_reference(held_out: Mapping[str, Any]) -> str:
    """What distances to the nearest training image depend on, by content: all training images of a data set, and
    held-out images of the same one. ConfigError where no data set is known.

    Args:
        held_out: the held-out images, as `image_set` states them.
    """
    if not held_out:
        raise ConfigError(
            f"evaluation.metrics = {NEAREST}: needs training images, and no data set is known; name one with --data, "
            "such as openmoji32_micro"
        )
    return digest("training images", {"data": held_out["data"], "split": "train", "held_out": dict(held_out)})


def label_cycle(labels: Sequence[int]) -> dict[str, Any]:
    """Classes in turn as plain data, with the hash of their list."""
    return {"cycle": digest("labels", [int(label) for label in labels])}


def labels_in_words(labels: Mapping[str, Any]) -> str | None:
    """A note on the rule for the classes of drawn images; None where they are those of held-out images."""
    if "random" in labels:
        return f"classes of its images: drawn at random, each of {labels['random']:,} equally likely"
    return "classes of its images: listed in turn" if "cycle" in labels else None
