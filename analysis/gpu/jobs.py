"""Jobs of the GPU queue, in order of worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from analysis.gpu import measure
from pforce.models import ModelConfig, sized


@dataclass
class Bench:
    """Where jobs are run."""

    device: torch.device
    small: bool
    """Tiny sizes, nothing compiled, for a CPU."""
    results: Path
    """Folder of results."""
    data: Path | None
    """Folder with the built data sets."""
    storage: Path
    processes: int
    """Cells at a time."""
    deadline: float = 0.0
    """End of the time, on the clock of `time.monotonic`."""


@dataclass(frozen=True)
class Job:
    """A measurement."""

    name: str
    seconds: float
    """Expected seconds on an H100."""
    run: Callable[[Bench], dict[str, Any]]
    version: int = 1
    """Raised where results of before do not count any more."""
    needs_data: bool = False


MICRO = sized("micro", patch=4, channels=3, classes=11)
TINY = ModelConfig(depth=1, width=32, heads=2, patch=4, image_size=(16, 16), channels=3, classes=5)
MODELS = {"XL/2": (sized("XL"), 512), "B/2": (sized("B"), 1024), "micro": (MICRO, 8192)}
"""Name → configuration, and the batch that is tried first."""


def training(size: str, modulation: str, compiled: bool, bench: Bench) -> dict[str, Any]:
    """Speed of a training, and the share of the ceiling that it reaches.

    Args:
        modulation: interpolated or exact of a PFT, or none: a SiT.
    """
    config, batch = (TINY, 8) if bench.small else MODELS[size]
    changes = {"difficulty_head": False} if modulation == "none" else {"modulation": modulation}
    config = replace(config, **changes)  # type: ignore[arg-type]  # the fields' types differ
    compiled, steps = compiled and not bench.small, 2 if bench.small else 8
    return measure.largest_batch(config, batch, bench.device, compiled=compiled, steps=steps)


def sampling(bench: Bench) -> dict[str, Any]:
    """Speed of each solver."""
    config, batch, nfe = (TINY, 4, 8) if bench.small else (sized("XL"), 128, 24)
    return measure.sampling_speed(config, batch, nfe, bench.device, compiled=not bench.small)


def solvers(bench: Bench) -> dict[str, Any]:
    """Agreement of solvers on a compiled model."""
    return measure.solvers_agree(bench.device, compiled=not bench.small)


def no_waiting(bench: Bench) -> dict[str, Any]:
    """A training in which waiting for the GPU is an error between the points of its curve."""
    config, batch, steps = (TINY, 8, 6) if bench.small else (MICRO, 256, 40)
    waiting = measure.NoWaiting()
    return measure.throughput(config, batch, bench.device, compiled=False, steps=steps, callback=waiting)


def _training_jobs(compiled: bool, cases: list[tuple[str, str, float]]) -> list[Job]:
    return [
        Job(
            f"training {'SiT' if modulation == 'none' else 'PFT'}-{size}"
            f"{'' if modulation == 'none' else f' {modulation}'}{' compiled' if compiled else ' eager'}",
            seconds, partial(training, size, modulation, compiled),
        )
        for size, modulation, seconds in cases
    ]  # fmt: skip


JOBS = [
    Job("agreement", 10, lambda bench: measure.agreement(bench.device, compiled=not bench.small)),
    *_training_jobs(True, [("XL/2", "interpolated", 40), ("XL/2", "exact", 40), ("XL/2", "none", 30)]),
    *_training_jobs(True, [("B/2", "interpolated", 20), ("B/2", "exact", 20), ("B/2", "none", 15)]),
    Job("sampling XL/2", 50, sampling),
    Job("no waiting for the GPU", 10, no_waiting),
    Job("solvers, compiled with CUDA graphs", 60, solvers),
    *_training_jobs(True, [("micro", "interpolated", 12), ("micro", "exact", 12), ("micro", "none", 12)]),
    *_training_jobs(False, [("XL/2", "interpolated", 25), ("XL/2", "exact", 25), ("XL/2", "none", 20)]),
    *_training_jobs(False, [("B/2", "interpolated", 12), ("B/2", "exact", 12), ("B/2", "none", 10)]),
    *_training_jobs(False, [("micro", "interpolated", 8), ("micro", "exact", 8), ("micro", "none", 8)]),
    Job("flash attention", 40, lambda bench: measure.flash_agrees(bench.device)),
]
"""Measurements of speed and agreement: about 9 minutes in all, at most 5 up to the solvers."""
