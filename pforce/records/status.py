"""States of a cell or a run, in MLflow's words, which frames also use."""

from __future__ import annotations

from typing import Final, Literal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RUNNING: Final = "RUNNING"
FINISHED: Final = "FINISHED"
FAILED: Final = "FAILED"
"""Status of a cell or run that ended with an error, or diverged."""
KILLED: Final = "KILLED"
"""Status of a cell or run that was stopped from outside; the same command resumes it."""
SCHEDULED: Final = "SCHEDULED"
"""Status of waiting runs that only MLflow's own tools set."""
UNDER_WAY = (RUNNING, SCHEDULED)
