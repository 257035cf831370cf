"""Random generators: the only module that seeds them.

Every random draw belongs to a key: its purpose, the experiment's seed, and a counter that does not depend on the number
of workers (a training step, an image's index). Nothing carries hidden state, so resuming needs no saved generator, and
two workers draw the same numbers as one.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key and on nothing else (no `hash()` salt)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded by the key."""
    return torch.Generator(device=device).manual_seed(seed_of(*key))


def noise_for_images(
    seed: int, first: int, count: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Initial noise x0 of the images `first … first + count − 1`: (count, *shape) float32, N(0, 1).

    Each image has a key of its own, so it does not depend on its batch or on the worker that draws it. The noise is
    drawn on the CPU, so it does not depend on the device either.
    """
    rows = [torch.randn(shape, generator=generator("image", seed, index)) for index in range(first, first + count)]
    return torch.stack(rows).to(device)
