"""What Slurm says about the job that this process belongs to."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress

ASK_SECONDS = 10.0
LEFT = re.compile(r"(?:(?P<days>\d{1,4})-)?(?:(?P<hours>\d{1,4}):)?(?P<minutes>\d{1,6}):(?P<seconds>\d{2})")
"""Time left as `squeue` prints it: 1-02:03:04, 2:03:04, or 3:04."""


def in_job() -> bool:
    """Whether this process belongs to a Slurm job."""
    return "SLURM_JOB_ID" in os.environ


def seconds_of(text: str) -> float | None:
    """Seconds of a time as `squeue` prints it; None where there is no limit, or for another text."""
    match = LEFT.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def seconds_left() -> float | None:
    """Seconds until the job's time limit; None outside a job, without a limit, or where Slurm does not say."""
    if not in_job():
        return None
    with suppress(ValueError):  # releases since 2022 say it here
        return float(os.environ.get("SLURM_JOB_END_TIME", "")) - time.time()
    try:
        said = subprocess.run(
            ["squeue", "--noheader", "--jobs", os.environ["SLURM_JOB_ID"], "--format", "%L"],
            capture_output=True, text=True, check=True, timeout=ASK_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return seconds_of(said.stdout)
