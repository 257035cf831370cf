"""Counts in words."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 cell`, `1,024 images`, `0.25 GPUs`.

    Args:
        plural: the noun's plural; default: the noun with an s.
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or f'{noun}s'}"
