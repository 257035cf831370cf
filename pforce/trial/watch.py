"""How far a trial is, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pforce.records.lease import Holder

Phase = Literal[
    "training", "validation loss", "difficulty", "context", "features of the reference", "features of the images",
    "sampling", "distances",
]  # fmt: skip
"""What a trial is doing."""
Progress = Callable[[Phase, float], None]
"""Called with what is being done and the share of it that is done."""


def quiet(phase: Phase, share: float) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Watch:
    """Who is told of a trial under way."""

    begins: Callable[[], None] = lambda: None
    """The trial is at work itself: whoever was at it before has left it."""
    waits: Callable[[Holder | None], None] = lambda holder: None
    """Another process is at what the trial needs."""
    progress: Progress = quiet


UNSEEN = Watch()
