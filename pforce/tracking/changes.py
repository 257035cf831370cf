"""Changes of trials under way, noted until the store shows them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pforce.records.status import RUNNING, Status
from pforce.tracking.checks import TrackingError
from pforce.tracking.page import Run
from pforce.tracking.view import Point, View

FLUSH_SECONDS = 60.0


def flush_seconds() -> float:
    """How long a sweep's end waits for a store that is away: PFORCE_FLUSH_SECONDS, or 60. TrackingError where wrong."""
    text = os.environ.get("PFORCE_FLUSH_SECONDS", str(FLUSH_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise TrackingError(f"PFORCE_FLUSH_SECONDS = {text}: must be a number of seconds, 0 or more")
    return seconds


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass
class Trial:
    """What is told of a trial, or of the sweep itself."""

    name: str
    tags: dict[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    status: Status = RUNNING
    started: int = field(default_factory=now)
    ended: int | None = None
    past: Callable[[], Sequence[Point]] | None = None
    """Its curve as far as it was trained before, until that is looked up."""
    points: list[Point] = field(default_factory=list)
    whole: Callable[[], View | None] | None = None
    """Reads what the records of a run that ended well say."""
    files: Sequence[Path] = ()
    """Logs of the last attempt of a run that failed."""
    changes: int = 1
    """How often it was changed, and how much of that is shown."""
    shown: int = 0
    run: Run | None = None
    doubtful: bool = False
    """Whether its run's making was not answered, so that there may be another one by now."""
    failures: int = 0
    """How often in turn it could not be shown, though the store answers."""
    refused: bool = False


class GoneError(Exception):
    """A run, or the page, is not in the store any more."""


class Changing:
    """A trial that is changed while nobody looks.

    Args:
        changed: notified afterwards.
    """

    def __init__(self, changed: threading.Condition, trial: Trial) -> None:
        self.changed, self.trial = changed, trial

    def __enter__(self) -> Trial:
        self.changed.acquire()
        return self.trial

    def __exit__(self, *error: object) -> None:
        self.trial.changes += 1
        self.changed.notify_all()
        self.changed.release()
