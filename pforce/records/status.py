"""What became of a cell or a run: words that MLflow has, and that frames hold as they are."""

from __future__ import annotations

from typing import Final, Literal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RUNNING: Final = "RUNNING"
FINISHED: Final = "FINISHED"
FAILED: Final = "FAILED"
"""Ended with an error, or diverged."""
KILLED: Final = "KILLED"
"""Stopped from outside: the same command goes on."""
SCHEDULED: Final = "SCHEDULED"
"""A word that only MLflow's own tools use, of runs that wait."""
UNDER_WAY = (RUNNING, SCHEDULED)
