"""The `openmoji` detector: a small classifier of emoji drawings, shipped with its weights.

Its features make Fréchet distances on the embedded data comparable between machines without a download. They
are reported as `fd/openmoji`, never as FID. `experiments/train_openmoji_detector.py` trains it; the accuracy on
held-out emojis is in the JSON beside the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pforce.metrics.detectors.base import DetectorError

INPUT_SIZE = 32
FEATURE_SIZE = 64
WEIGHTS = Path(__file__).with_name("openmoji.safetensors")
RECORD = Path(__file__).with_name("openmoji.json")


@dataclass(frozen=True)
class DetectorRecord:
    """What `openmoji.json` says about the weights beside it."""

    weights_sha256: str
    classes: int
    held_out_accuracy: float
    held_out_images: int
    held_out_majority_share: float
    """What always guessing the commonest class would reach on the same images."""
    training_images: int
    data_manifest_hash: str
    training: dict[str, Any]
    """The training script's settings."""


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions. Batch norm, so that at evaluation an image's features do not depend on its batch."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class OpenMojiDetector(nn.Module):
    """Three convolutional stages at 32², 16² and 8², average pooling to 64 features, and a linear classifier."""

    name = "openmoji"
    feature_size = FEATURE_SIZE
    minimum_size = INPUT_SIZE

    def __init__(self, classes: int, sha256: str = "") -> None:
        super().__init__()
        self.sha256 = sha256
        self.stages = nn.Sequential(
            _stage(3, 24), nn.MaxPool2d(2), _stage(24, 48), nn.MaxPool2d(2), _stage(48, FEATURE_SIZE)
        )
        self.classifier = nn.Linear(FEATURE_SIZE, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [−1, 1], square, at least 32² → (B, 64) float32. Larger images are averaged down.

        Raises:
            ValueError: images of another shape.
        """
        _, channels, height, width = images.shape
        if channels != 3 or height != width or height < INPUT_SIZE:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: must be (B, 3, H, H) with H at least {INPUT_SIZE} pixels"
            )
        images = images.to(torch.float32)
        if height > INPUT_SIZE:
            images = F.interpolate(images, size=(INPUT_SIZE, INPUT_SIZE), mode="area")
        pooled: Tensor = self.stages(images).mean(dim=(2, 3))  # (B, 64)
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [−1, 1] → (B, classes) logits."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def read_record(path: Path = RECORD) -> DetectorRecord:
    """The shipped record.

    Raises:
        DetectorError: it is missing or unreadable.
    """
    try:
        return DetectorRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DetectorError(f"{path} cannot be read ({error}). Reinstall pforce") from error


def load(weights: Path = WEIGHTS, record: Path = RECORD) -> OpenMojiDetector:
    """The shipped detector, frozen and in eval mode.

    Raises:
        DetectorError: the weights are missing, or are not the ones the record names.
    """
    described = read_record(record)
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise DetectorError(f"{weights} cannot be read ({error}). Reinstall pforce") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != described.weights_sha256:
        raise DetectorError(
            f"{weights} has sha256 {sha256}, {record.name} names {described.weights_sha256}: distances would not be "
            "comparable. Reinstall pforce, or train again, which writes both"
        )
    detector = OpenMojiDetector(described.classes, sha256)
    detector.load_state_dict(safetensors.torch.load(content))
    return detector.eval().requires_grad_(False)
