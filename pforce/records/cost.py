"""The cost of finished work as a value: read from records, added up, and shown as metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from pforce.metrics.names import THROUGHPUT, CostName


@dataclass(frozen=True)
class Cost:
    """Cost of a part, or of several together. None stands for a value that no record has."""

    seconds: float | None = None
    device_seconds: float | None = None
    """Device-seconds: seconds × devices, summed over resumes."""
    images: float | None = None
    """Images that a training has seen, or images drawn."""
    passes: float | None = None
    """Forward passes over all images."""
    nfe: float | None = None
    trunk_seconds: float | None = None
    """Seconds of the trunk that a branch starts from; `seconds` includes them. They are counted once where both are
    added up."""
    trunk_device_seconds: float | None = None
    trunk_images: float | None = None

    @classmethod
    def of(cls, plain: Mapping[str, float]) -> Cost:
        """The cost from a record's `cost`; unknown entries are ignored."""
        return cls(**{field.name: plain[field.name] for field in fields(cls) if field.name in plain})

    @classmethod
    def total(cls, several: Iterable[Mapping[str, float]]) -> Cost:
        """The sum of the costs of several records."""
        return sum((cls.of(plain) for plain in several), cls())

    def __add__(self, other: Cost) -> Cost:
        both = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Cost(**{name: b if a is None else a if b is None else a + b for name, (a, b) in both.items()})

    def plain(self) -> dict[str, float]:
        """The entry `cost` of a record: all values that are known and finite."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in known.items() if value is not None and math.isfinite(value)}

    def metrics(self) -> dict[str, float]:
        """Metrics of a whole row: seconds and device-hours."""
        return {CostName.SECONDS: self.seconds or 0.0, CostName.DEVICE_HOURS: (self.device_seconds or 0.0) / 3600}

    def evaluation_metrics(self) -> dict[str, float]:
        """Metrics of an evaluation: its seconds."""
        return {CostName.EVALUATION_SECONDS: self.seconds or 0.0}

    def training_metrics(self, images_seen: float) -> dict[str, float]:
        """Metrics of a training: seconds, throughput, and a branch's costs of its trunk.

        Args:
            images_seen: images that the training has seen.
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
