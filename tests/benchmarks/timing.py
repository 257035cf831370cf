"""Timing functions in turn, so that a drifting machine drifts for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each call, `rounds` rounds of every function in turn after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray, scale: float = 1e3, places: int = 2) -> str:
    """`median (5 % … 95 %)`, by default in milliseconds."""
    low, middle, high = np.quantile(values * scale, [0.05, 0.5, 0.95])
    return f"{middle:.{places}f} ({low:.{places}f} … {high:.{places}f})"
