"""FLOPs of a training, and the share of a device's peak that it reaches (MFU)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch

from pforce import flow
from pforce.models import ModelConfig, PatchForcingTransformer
from pforce.models.interpolation import NODES

TERA = 1e12


class Peak(NamedTuple):
    """Peak of a GPU's dense matrix products, in TFLOP/s, as its data sheet says, without sparsity."""

    bfloat16: float
    tf32: float
    float32: float


PEAKS = {
    "B200": Peak(2250, 1100, 75),
    "H200": Peak(989, 495, 67),
    "GH200": Peak(989, 495, 67),
    "H100 PCIe": Peak(756, 378, 51),
    "H100 NVL": Peak(835, 418, 60),
    "H100": Peak(989, 495, 67),
    "A100": Peak(312, 156, 19.5),
    "L40S": Peak(362, 183, 91.6),
    "L4": Peak(121, 60, 30.3),
    "A10": Peak(125, 62.5, 31.2),
    "A10G": Peak(70, 35, 35),
    "RTX A6000": Peak(154.8, 77.4, 38.7),
    "RTX 3090": Peak(71, 35.6, 35.6),
    "RTX 4090": Peak(165.2, 82.6, 82.6),
    "RTX 5090": Peak(209.5, 104.8, 104.8),
}
"""Name of a GPU, as words of the name that its driver gives → its peak. Sources: NVIDIA's data sheets."""


def peak_flops(device_name: str, *, bfloat16: bool, tf32: bool) -> float | None:
    """Peak of a GPU in FLOP/s at a precision; None where it is not known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it, such as NVIDIA H100 80GB HBM3.
        tf32: whether products of float32 numbers may be rounded to TF32.
    """
    words = device_name.replace("-", " ").split()
    known = [name for name in PEAKS if _within(name.split(), words)]
    if not known:
        return None
    peak = PEAKS[max(known, key=len)]
    return TERA * (peak.bfloat16 if bfloat16 else peak.tf32 if tf32 else peak.float32)


def _within(part: list[str], words: list[str]) -> bool:
    return all(word in words for word in part)


@cache
def training_flops(config: ModelConfig) -> int:
    """FLOPs of forward and backward per image, with one timestep per patch, counted on tensors without data.
    Modulations are interpolated between the fewest nodes, where the model interpolates them."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton: not every command pays for it

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = PatchForcingTransformer(replace(config, attention="sdpa"))
        model.modulation_nodes = NODES[0] if config.modulation == "interpolated" else 0
        x = torch.empty(1, config.channels, *config.image_size)
        t = torch.empty(1, config.patches) if config.difficulty_head else torch.empty(1)
        flow.loss(model, x, torch.zeros(1, dtype=torch.long), t, x).total.backward()
    return int(counter.get_total_flops())


def utilisation(
    config: ModelConfig, device: torch.device, images_per_second: float, *, devices: int, bfloat16: bool
) -> float:
    """Model FLOPs utilisation (MFU; Chowdhery et al. 2022): the FLOPs per second of forward and backward, which count
    nothing twice, as a share of the peak of all devices; 0 where the peak is not known, as on a CPU.

    Args:
        devices: number of devices that share the training.
    """
    if device.type != "cuda":
        return 0.0
    name, tf32 = torch.cuda.get_device_name(device), torch.backends.cuda.matmul.allow_tf32
    peak = peak_flops(name, bfloat16=bfloat16, tf32=tf32)
    return training_flops(config) * images_per_second / (devices * peak) if peak else 0.0
