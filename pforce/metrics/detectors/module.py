"""Detectors from any torch module, and DINOv2 from timm with weights from a file."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pforce.base.files import sha256_of
from pforce.metrics.detectors.base import Detector, DetectorError, Reading

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_MODEL = "vit_large_patch14_dinov2"
"""The size that published Fréchet distances in DINOv2 features use (1,024 features)."""
DINO_SIZE = 224


def weights_hash(module: nn.Module) -> str:
    """SHA-256, in hexadecimal, of a module's layers, parameters and buffers."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _resized(images: Tensor, size: int) -> Tensor:
    """Resize uint8 (B, 3, H, W) to float32 (B, 3, size, size), bicubic with antialiasing, values still 0…255."""
    values = images.float()
    if values.shape[-2:] == (size, size):
        return values
    return F.interpolate(values, size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


class ModuleDetector(nn.Module):
    """A detector made from a torch module that turns normalised images into features.

    Args:
        module: module from (B, 3, size, size) float32 to (B, D) or any shape, which is flattened.
        name: name in names of metrics, `fd/<name>`.
        size: height and width in pixels to which images are resized, bicubic with antialiasing.
        mean, std: mean and standard deviation of each channel, for values in [0, 1].
        sha256: SHA-256 of the weights; computed where it is not given.
    """

    minimum_size = 1
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        name: str,
        *,
        size: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.module, self.name, self.size = module.eval().requires_grad_(False), name, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        self.preprocessing = f"bicubic with antialiasing to {size}², mean {mean}, std {std}"
        with torch.inference_mode():
            device = next((p.device for p in module.parameters()), torch.device("cpu"))
            probe = torch.arange(3 * size * size, dtype=torch.float32).mul(37).remainder(256).to(torch.uint8)
            features = self.to(device).read(probe.view(1, 3, size, size).to(device)).features
        self.feature_size = features.shape[1]
        # Layers and weights do not show what `forward` does; its output for one image does, rounded to digits that do
        # not depend on the machine.
        told = ",".join(f"{value:.2e}" for value in features.flatten()[:64].tolist())
        self.sha256 = sha256 or hashlib.sha256(f"{weights_hash(module)} {told}".encode()).hexdigest()

    def to(self, *where: Any, **how: Any) -> Self:
        """The detector on a device."""
        return super().to(*where, **how)

    def read(self, images: Tensor) -> Reading:
        """Features of uint8 images (B, 3, H, W) of any size. ValueError for another shape or type; TypeError where the
        module returns no tensor."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images {tuple(images.shape)} of {images.dtype}: must be (B, 3, H, W) uint8 (pforce.images.to_uint8)"
            )
        features = self.module((_resized(images, self.size) - self.mean) / self.std)
        if not isinstance(features, Tensor):
            raise TypeError(f"detector {self.name}: its module gave a {type(features).__name__}, not a tensor (B, D)")
        return Reading(features.flatten(1).float())


def from_path(target: str) -> Detector:
    """A detector made by your own function, named `package.module:function`.

    DetectorError where there is no such function, or where it does not return a detector.
    """
    module_name, _, function_name = target.partition(":")
    try:
        make: Callable[[], Detector] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DetectorError(
            f"detector {target}: cannot be imported ({error}); write package.module:function"
        ) from error
    try:
        found = make()
    except Exception as error:  # the user's own code
        raise DetectorError(f"detector {target}: its function failed ({type(error).__name__}: {error})") from error
    members = ("name", "feature_size", "minimum_size", "sha256", "preprocessing", "read", "to")
    lacking = [name for name in members if not hasattr(found, name)]
    if lacking:
        raise DetectorError(
            f"detector {target}: made a {type(found).__name__} without {', '.join(lacking)}; wrap a torch module in "
            "pforce.metrics.detectors.ModuleDetector"
        )
    if found.name != function_name:
        raise DetectorError(
            f"detector {target}: made one called {found.name!r}: give it its function's name, {function_name!r}, which "
            "metrics are named by"
        )
    return found


def load_dinov2(weights: str | Path | None, sha256: str | None = None, model: str = DINO_MODEL) -> ModuleDetector:
    """DINOv2's class token from timm (extra `dino`), with weights from a file. Nothing is downloaded.

    Args:
        weights: file with a state dict of timm's model (.safetensors or .pth).
        sha256: hash of the file, or its first digits.
        model: timm's name of the model.

    Raises:
        DetectorError: timm is not installed, there is no file, it has another hash, or it holds another model's
            weights.
    """
    try:
        import timm
    except ImportError as error:
        raise DetectorError("detector dinov2: needs timm: pip install 'pforce[dino]'") from error
    if weights is None:
        raise DetectorError(
            f"detector dinov2: needs its weights from a file: --evaluation.detector-weights FILE with timm's "
            f"{model}; nothing is downloaded"
        )
    path = Path(weights)
    try:
        found = sha256_of(path)
    except OSError as error:
        raise DetectorError(f"detector weights {path}: cannot be read ({error.strerror})") from error
    if sha256 is not None and not found.startswith(sha256.lower()):
        raise DetectorError(
            f"detector weights {path}: sha256 {found}, expected {sha256}…: features of other weights are not comparable"
        )
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network = timm.create_model(model, pretrained=False, num_classes=0, img_size=DINO_SIZE)
        own = network.state_dict()
        if (position := state.get("pos_embed")) is not None and position.shape != own["pos_embed"].shape:
            from timm.layers.pos_embed import resample_abs_pos_embed

            grid = round((own["pos_embed"].shape[1] - 1) ** 0.5)
            state["pos_embed"] = resample_abs_pos_embed(position, new_size=[grid, grid], num_prefix_tokens=1)
        network.load_state_dict(state)
    except Exception as error:  # a file can be wrong in many ways
        raise DetectorError(f"detector weights {path}: not timm's {model} ({error})") from error
    return ModuleDetector(network, "dinov2", size=DINO_SIZE, sha256=found)
