"""A model at hand, and what it is measured with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pforce.data import Batch
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.detectors import Detector
from pforce.metrics.reference import ReferenceStatistics
from pforce.models import PatchForcingTransformer
from pforce.models.autoencoder import Decoder
from pforce.sampling import Euler, Sampler
from pforce.trial.draw import (
    BLOCK,
)


@dataclass
class Subject:
    """A model at hand, and what it is measured with. What is read late is a function."""

    model: PatchForcingTransformer
    """On the device, in evaluation mode."""
    weights: str
    """Hash of its tensors."""
    device: torch.device
    sampler: Sampler = field(default_factory=Euler)
    labels: Callable[[], Tensor] = lambda: torch.zeros(1, dtype=torch.long)
    """(M,); drawn image i is of class labels[i mod M]."""
    detector: Callable[[], Detector] | None = None
    """On the device."""
    reference: Callable[[], ReferenceStatistics] | None = None
    held_out: Callable[[], Batch] | None = None
    batch: int = BLOCK
    """Images per forward pass."""
    decode: Decoder | None = None
    devices: float = 1.0
    """Devices that this process stands for, for device-seconds."""
    provenance: Mapping[str, str] = field(default_factory=dict)


def cycle_of(config: EvaluationConfig, validation: Callable[[int], Batch], classes: int) -> Tensor:
    """Classes of drawn images in turn, as an evaluation's rule has them.

    Args:
        validation: so many held-out images, spread evenly.
    """
    if config.labels == "classes":
        return torch.arange(classes)
    return validation(config.label_images).labels
