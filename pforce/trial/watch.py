"""Callbacks that follow a running attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pforce.records.lease import Holder

Phase = Literal[
    "training", "validation loss", "difficulty", "context", "features of the reference", "features of the images",
    "sampling", "distances", "nearest training images",
]  # fmt: skip
"""Phases of an attempt."""
Progress = Callable[[Phase, float], None]
"""Callback that gets the phase and the share of it that is done, in [0, 1]."""


def quiet(phase: Phase, share: float) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Watch:
    """Callbacks of a running attempt."""

    begins: Callable[[], None] = lambda: None
    """Called when the attempt begins its own work and no longer waits for another process."""
    waits: Callable[[Holder | None], None] = lambda holder: None
    """Called while another process makes what the attempt needs, with the holder of its lease."""
    progress: Progress = quiet
    snapshot: Callable[[int], None] = lambda images_seen: None
    """Called when a snapshot of the training is there and recorded, with its images seen."""


UNSEEN = Watch()
