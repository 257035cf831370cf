"""A model in memory with everything to measure it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pforce.data import Batch
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.detectors import Detector
from pforce.metrics.memorisation import Training
from pforce.metrics.reference import ReferenceStatistics
from pforce.models import PatchForcingTransformer
from pforce.models.autoencoder import Decoder
from pforce.sampling import Euler, Sampler
from pforce.trial.draw import (
    BLOCK,
)

RANDOM_CLASSES = 2**17
"""Classes that are drawn at random; images beyond them begin again with the first. Part of the rule `random`."""


@dataclass
class Subject:
    """A model in memory with everything to measure it. Inputs that are read late are functions."""

    model: PatchForcingTransformer
    """The model, on the device, in eval mode."""
    weights: str
    """Hash of the model's tensors."""
    device: torch.device
    sampler: Sampler = field(default_factory=Euler)
    labels: Callable[[], Tensor] = lambda: torch.zeros(1, dtype=torch.long)
    """Function that returns classes (M,); drawn image i has class labels[i mod M]."""
    detector: Callable[[], Detector] | None = None
    """Function that returns the detector, on the device."""
    reference: Callable[[], ReferenceStatistics] | None = None
    further: Sequence[tuple[Callable[[], Detector], Callable[[], ReferenceStatistics]]] = ()
    """Functions that return each further detector, and the reference in its features."""
    training: Callable[[], Training] | None = None
    """Function that returns the training images, for distances to the nearest one."""
    held_out: Callable[[], Batch] | None = None
    batch: int = BLOCK
    """Images per forward pass."""
    decode: Decoder | None = None
    devices: float = 1.0
    """Devices that this process counts for in device-seconds."""
    provenance: Mapping[str, str] = field(default_factory=dict)


def random_classes(classes: int, seed: int) -> Tensor:
    """Classes (RANDOM_CLASSES,), each equally likely, equal on all machines."""
    return torch.from_numpy(np.random.RandomState(seed % 2**32).randint(0, classes, RANDOM_CLASSES, dtype=np.int64))


def cycle_of(config: EvaluationConfig, validation: Callable[[int], Batch] | None, classes: int) -> Tensor:
    """Classes of drawn images in turn, by the evaluation's rule.

    Args:
        validation: function from a number to that many held-out images, spread evenly; None where there are none, so
            that all classes are taken in turn.
    """
    if config.labels == "random":
        return random_classes(classes, config.seed)
    if config.labels == "classes" or validation is None:
        return torch.arange(classes)
    return validation(config.label_images).labels
