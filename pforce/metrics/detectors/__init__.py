"""Feature detectors by name."""

from __future__ import annotations

from pathlib import Path

from pforce.base.errors import require, require_applies, require_one_of
from pforce.metrics.detectors import classifier, inception, module
from pforce.metrics.detectors.base import Detector, DetectorError, Reading
from pforce.metrics.detectors.module import ModuleDetector
from pforce.metrics.detectors.pixels import WithPixels

FROM_FILES = ("inception", "dinov2")
"""Detectors that read their weights from a file."""
NAMES = (*classifier.NAMES, *FROM_FILES)


def check_name(name: str, where: str = "detector") -> None:
    """Raise FieldError for a text that is neither a detector's name nor package.module:function."""
    if ":" not in name:
        require_one_of(where, name, (*NAMES, "package.module:function"))


def load_detector(name: str, weights: str | Path | None = None, sha256: str | None = None) -> Detector:
    """The detector of that name.

    Args:
        name: `openmoji` or `fashion-mnist` (shipped with their weights), `inception` or `dinov2` (from a file), or
            `package.module:function`, your own function that makes one.
        weights: the file with the weights.
        sha256: hash of the file, or its first digits.

    Raises:
        FieldError: the name is unknown, or weights are given for a detector that has its own.
        DetectorError: the weights are missing or changed.
    """
    check_name(name)
    own = name in classifier.NAMES or ":" in name
    require_applies(weights is None or not own, "detector_weights", weights, f"to {name}, which brings its own")
    require(sha256 is None or len(sha256) >= 8, "detector_sha256", sha256, "at least 8 digits of a sha256")
    if name == "inception":
        return inception.load(weights, sha256)
    if name == "dinov2":
        return module.load_dinov2(weights, sha256)
    if ":" in name:
        return module.from_path(name)
    return classifier.load(name)


__all__ = ["Detector", "DetectorError", "ModuleDetector", "Reading", "WithPixels", "check_name", "load_detector"]
