"""Decoders of latent diffusion: pixels from the latents that published models sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pforce.base.errors import InputError

Decoder = Callable[[Tensor], Tensor]
"""Function from latents (B, C, h, w), scaled as in training, to pixels (B, 3, H, W) in [−1, 1]."""


class AutoencoderError(InputError, ValueError):
    """An autoencoder cannot be read. The message gives the reason and the remedy."""


def load_decoder(path: str | Path, device: torch.device, *, channels: int) -> Decoder:
    """The decoder of an autoencoder in diffusers' format: a folder with a config.json, such as the SD-VAE's.

    Latents are divided by the configuration's `scaling_factor` (0.18215 for the SD-VAE), and its `shift_factor`, if
    any, is added. Only local files are read.

    AutoencoderError where the package or the files are missing, or the decoder's latents do not have `channels`
    channels.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise AutoencoderError(
            "decoder: the package diffusers is not installed. Install the extra: pip install 'pforce[latents]'"
        ) from error
    try:
        autoencoder: Any = AutoencoderKL.from_pretrained(str(path), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise AutoencoderError(
            f"decoder {path}: is not a folder with an autoencoder in diffusers' format as safetensors ({first})"
        ) from error
    config = autoencoder.config
    if config.latent_channels != channels:
        raise AutoencoderError(
            f"decoder {path}: takes latents of {config.latent_channels} channels, the model's have {channels}"
        )
    autoencoder.to(device).eval().requires_grad_(False)
    scale, shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        images: Tensor = autoencoder.decode(latents / scale + shift).sample
        return images.clamp(-1, 1)

    return decode
