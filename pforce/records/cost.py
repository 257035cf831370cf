"""What finished work cost, as a value: read from records, added up, and shown as metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from pforce.metrics.names import THROUGHPUT, CostName


@dataclass(frozen=True)
class Cost:
    """What a part, or several together, took. None is what no record says."""

    seconds: float | None = None
    device_seconds: float | None = None
    """Seconds × devices, summed over resumes."""
    images: float | None = None
    """Images that a training saw, or that were drawn."""
    passes: float | None = None
    """Forward passes, over all images."""
    nfe: float | None = None
    trunk_seconds: float | None = None
    """What a branch has of its trunk, and holds in `seconds`, too: counted once where both are added up."""
    trunk_device_seconds: float | None = None
    trunk_images: float | None = None

    @classmethod
    def of(cls, plain: Mapping[str, float]) -> Cost:
        """The cost of a record, from its `cost`; other entries are passed over."""
        return cls(**{field.name: plain[field.name] for field in fields(cls) if field.name in plain})

    @classmethod
    def total(cls, several: Iterable[Mapping[str, float]]) -> Cost:
        """The costs of several records together."""
        return sum((cls.of(plain) for plain in several), cls())

    def __add__(self, other: Cost) -> Cost:
        both = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Cost(**{name: b if a is None else a if b is None else a + b for name, (a, b) in both.items()})

    def plain(self) -> dict[str, float]:
        """The `cost` of a record: what is known, and finite."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in known.items() if value is not None and math.isfinite(value)}

    def metrics(self) -> dict[str, float]:
        """Seconds and device-hours of a whole row."""
        return {CostName.SECONDS: self.seconds or 0.0, CostName.DEVICE_HOURS: (self.device_seconds or 0.0) / 3600}

    def evaluation_metrics(self) -> dict[str, float]:
        """Seconds of an evaluation."""
        return {CostName.EVALUATION_SECONDS: self.seconds or 0.0}

    def training_metrics(self, images_seen: float) -> dict[str, float]:
        """Seconds and speed of a training, and what a branch has of its trunk.

        Args:
            images_seen: by the training.
        """
        found: dict[str, float] = {}
        if self.seconds:
            found |= {CostName.TRAINING_SECONDS: self.seconds, THROUGHPUT: images_seen / self.seconds}
        devices = self.trunk_device_seconds
        trunk = {
            CostName.TRUNK_SECONDS: self.trunk_seconds, CostName.TRUNK_IMAGES: self.trunk_images,
            CostName.TRUNK_DEVICE_HOURS: None if devices is None else devices / 3600,
        }  # fmt: skip
        return found | {name: value for name, value in trunk.items() if value is not None}
