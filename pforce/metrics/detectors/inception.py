"""Detector `inception`: torch-fidelity's Inception v3, with weights from your file. Nothing is downloaded.

Its Fréchet distance is what papers call FID. The spatial features for sFID are the first 7 channels of Mixed_6d in NHWC
order, 17 · 17 · 7 = 2,023 numbers, as ADM's evaluator takes them: it reads `mixed_6/conv:0` of TensorFlow's graph,
which is the first branch of that layer after its ReLU, and so the first 192 of its channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pforce.base.files import sha256_of
from pforce.metrics.detectors.base import DetectorError, Reading

OFFICIAL_SHA256 = "6726825d"
"""First digits of the SHA-256 of torch-fidelity's converted TensorFlow weights, part of their file's name."""
OFFICIAL_FILE = "weights-inception-2015-12-05-6726825d.pth"
WHERE = (
    f"the file {OFFICIAL_FILE} of torch-fidelity's release v0.2.0 "
    "(https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0)"
)
SPATIAL_CHANNELS = 7


class InceptionDetector(nn.Module):
    """Features of the last pooling (2,048), logits without bias (1,008), and spatial features (2,023)."""

    name = "inception"
    feature_size = 2048
    spatial_size = 17 * 17 * SPATIAL_CHANNELS
    minimum_size = 1
    preprocessing = "resized to 299² as TensorFlow 1 does, (x − 128) / 128"

    def __init__(self, network: nn.Module, sha256: str) -> None:
        super().__init__()
        self.network, self.sha256 = network, sha256
        self._mixed: Tensor | None = None
        network.get_submodule("Mixed_6d").register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._mixed = output

    def to(self, *where: Any, **how: Any) -> Self:
        """The detector on a device."""
        return super().to(*where, **how)

    def read(self, images: Tensor) -> Reading:
        """Features, logits and spatial features of uint8 images (B, 3, H, W) of any size. ValueError for another shape
        or type."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images {tuple(images.shape)} of {images.dtype}: must be (B, 3, H, W) uint8 (pforce.images.to_uint8)"
            )
        features, logits = self.network(images)
        assert self._mixed is not None
        spatial = spatial_features(self._mixed)
        self._mixed = None
        return Reading(features, logits, spatial)


def spatial_features(mixed: Tensor) -> Tensor:
    """The first 7 channels of (B, C, H, W) activations as (B, H·W·7), channel fastest."""
    return mixed[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()


def load(weights: str | Path | None, sha256: str | None = None) -> InceptionDetector:
    """The detector with weights from a file whose hash is checked before it is read.

    Args:
        weights: the file with the weights.
        sha256: hash of the file, or its first digits; by default those of the official file.

    Raises:
        DetectorError: there is no file, it has another hash, or it does not hold Inception's weights.
    """
    expected = (sha256 or OFFICIAL_SHA256).lower()
    if weights is None:
        raise DetectorError(
            f"detector inception: needs its weights from a file: --evaluation.detector-weights FILE with {WHERE}; "
            "nothing is downloaded"
        )
    path = Path(weights)
    try:
        found = sha256_of(path)
    except OSError as error:
        raise DetectorError(f"detector weights {path}: cannot be read ({error.strerror}). Give {WHERE}") from error
    if not found.startswith(expected):
        raise DetectorError(
            f"detector weights {path}: sha256 {found}, expected {expected}…: features of other weights are not "
            f"comparable. Give {WHERE}, or state the hash that you trust (--detector-sha256)"
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity unpickles the file, so it is read as plain tensors first, which refuses a file that runs code.
        torch.load(path, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # a pickle, an archive or a state dict can be wrong in many ways
        raise DetectorError(f"detector weights {path}: not Inception's ({error}). Give {WHERE}") from error
    return InceptionDetector(network, found).eval()
