"""pforce's own detectors: small classifiers, one per data set, shipped with their weights.

Their features make Fréchet distances on small data comparable between machines without a download. They are reported as
`fd/openmoji` and `fd/fashion-mnist`, never as FID. `pforce_experiments/train_detector.py` trains them; the accuracy on
held-out images is in the JSON beside the weights.
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
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pforce.base.files import read_whole
from pforce.images import from_uint8
from pforce.metrics.detectors.base import DetectorError, Reading

NAMES = ("openmoji", "fashion-mnist")
INPUT_SIZE = 32
FEATURE_SIZE = 64
FOLDER = Path(__file__).parent
"""Folder with `<name>.safetensors` and `<name>.json` of each detector."""


@dataclass(frozen=True)
class DetectorRecord:
    """Content of `<name>.json`, which describes the weights beside it."""

    weights_sha256: str
    classes: int
    held_out_accuracy: float
    held_out_images: int
    held_out_majority_share: float
    """Accuracy of always guessing the most common class on the same images."""
    training_images: int
    data_manifest_hash: str
    training: dict[str, Any]
    """The training script's settings."""


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions with batch norm, so that at evaluation an image's features do not depend on its batch."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _check_shape(images: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] < INPUT_SIZE:
        raise ValueError(f"images of shape {shape}: must be (B, 3, H, H) with H at least {INPUT_SIZE} pixels")


def _averaged(images: Tensor) -> Tensor:
    """Images averaged over areas, as two small matrix products: (B, C, H, H) → (B, C, 32, 32)."""
    size = images.shape[-1]
    if size == INPUT_SIZE:
        return images
    areas = F.adaptive_avg_pool1d(torch.eye(size, device=images.device)[None], INPUT_SIZE)[0]  # (H, 32)
    return areas.T @ images @ areas


def fuse(detector: ClassifierDetector) -> ClassifierDetector:
    """Speed up a trained detector: features equal up to rounding, in about half the time on a CPU.

    Batch norms are folded into their convolutions, the memory format is channels-last, and ReLUs work in place and
    after the pooling, with which they commute: a new tensor of some MB for each of them would cost as much as their
    arithmetic.
    """
    layers: list[nn.Module] = []
    for stage in detector.stages:
        if isinstance(stage, nn.MaxPool2d):
            layers.insert(-1, stage)
            continue
        assert isinstance(stage, nn.Sequential)
        for place in range(0, len(stage), 3):
            convolution, norm, _ = stage[place : place + 3]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            layers += [fuse_conv_bn_eval(convolution, norm), nn.ReLU(inplace=True)]
    detector.stages = nn.Sequential(*layers)
    return detector.to(memory_format=torch.channels_last)


class ClassifierDetector(nn.Module):
    """Three convolutional stages at 32², 16² and 8², average pooling to 64 features, and a linear classifier."""

    def __init__(self, name: str, classes: int, sha256: str = "") -> None:
        super().__init__()
        self.name = name
        self.feature_size = FEATURE_SIZE
        self.minimum_size = INPUT_SIZE
        self.sha256 = sha256
        self.preprocessing = f"averaged down to {INPUT_SIZE}², scaled to [−1, 1]"
        self.stages = nn.Sequential(
            _stage(3, 24), nn.MaxPool2d(2), _stage(24, 48), nn.MaxPool2d(2), _stage(48, FEATURE_SIZE)
        )
        self.classifier = nn.Linear(FEATURE_SIZE, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 64) float32 of square images (B, 3, H, W) float in [−1, 1], at least 32²; larger ones are
        averaged down.

        Raises:
            ValueError: images of another shape.
        """
        _check_shape(images)
        images = _averaged(images.to(torch.float32)).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self.stages(images).mean(dim=(2, 3))  # (B, 64)
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) float in [−1, 1]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

    def classify(self, features: Tensor) -> Tensor:
        """Classes (N,) that features (N, 64) of images are of; ties go to the first."""
        with torch.inference_mode():
            found: Tensor = self.classifier(features.to(self.classifier.weight)).argmax(dim=1).cpu()
        return found

    def read(self, images: Tensor) -> Reading:
        """Features (B, 64) of square uint8 images (B, 3, H, W), at least 32². No logits: the classes are not
        ImageNet's, and a score of them would be mistaken for the Inception Score.

        Raises:
            ValueError: images of another shape or type.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images of {images.dtype}: must be torch.uint8. Convert them with pforce.images.to_uint8")
        _check_shape(images)
        return Reading(self.features(from_uint8(_averaged(images.to(torch.float32)))))


def read_record(name: str, folder: Path = FOLDER) -> DetectorRecord:
    """The record shipped with the weights of that name.

    Raises:
        DetectorError: the record is missing or unreadable.
    """
    path = folder / f"{name}.json"
    try:
        return DetectorRecord(**json.loads(read_whole(path)))
    except (OSError, ValueError, TypeError) as error:
        raise DetectorError(f"{path} cannot be read ({error}). Reinstall pforce") from error


def load(name: str, folder: Path = FOLDER, *, fused: bool = True) -> ClassifierDetector:
    """The shipped detector of that name, frozen and in eval mode.

    Args:
        fused: speed it up with `fuse`; False keeps the trained layers.

    Raises:
        DetectorError: the weights are missing, or are not those that the record names.
    """
    record = read_record(name, folder)
    weights = folder / f"{name}.safetensors"
    try:
        content = read_whole(weights)
    except OSError as error:
        raise DetectorError(f"{weights} cannot be read ({error}). Reinstall pforce") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != record.weights_sha256:
        raise DetectorError(
            f"{weights} has sha256 {sha256}, {name}.json names {record.weights_sha256}: distances would not be "
            "comparable. Reinstall pforce, or train again, which writes both"
        )
    detector = ClassifierDetector(name, record.classes, sha256)
    detector.load_state_dict(safetensors.torch.load(content))
    detector.eval().requires_grad_(False)
    return fuse(detector) if fused else detector
