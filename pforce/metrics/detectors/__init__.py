"""Feature detectors by name."""

from __future__ import annotations

from collections.abc import Callable

from pforce.metrics.detectors import openmoji
from pforce.metrics.detectors.base import Detector, DetectorError
from pforce.validation import require

_LOADERS: dict[str, Callable[[], Detector]] = {"openmoji": openmoji.load}


def load_detector(name: str) -> Detector:
    """The detector of that name, with its shipped weights.

    Raises:
        FieldError: an unknown name.
        DetectorError: its weights are missing or changed.
    """
    require(name in _LOADERS, "detector", name, f"one of {', '.join(_LOADERS)}")
    return _LOADERS[name]()


__all__ = ["Detector", "DetectorError", "load_detector"]
