"""A small sweep as a process of its own: `python driver.py STORAGE TRACKING_URI`. Two cells, many points.

Its training waits while there is a file STORAGE/hold, unless PFORCE_TEST_NO_HOLD is set: so a drill does not race
against it on a slow machine. PFORCE_TEST_EXECUTOR names another executor than this process: there nothing waits.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from pforce.base.console import exit_on_errors
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.training import Callback, Record, TrainState
from tests.training.conftest import tiny

STEPS, LOG_EVERY, CHECKPOINT_EVERY = 150, 1, 5


class Hold(Callback):
    """Waits at every step while a file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_record(self, state: TrainState, record: Record) -> None:
        while self.file.exists() and "PFORCE_TEST_NO_HOLD" not in os.environ:
            time.sleep(0.05)


if __name__ == "__main__":
    torch.set_num_threads(1)
    storage, uri = Path(sys.argv[1]), sys.argv[2]
    base = tiny(STEPS, log_every=LOG_EVERY, checkpoint_every=CHECKPOINT_EVERY)
    sweep = Sweep("drill", base, (Axis("timesteps.sigma", (0.2, 0.5)),))
    exit_on_errors(
        lambda: run_sweep(
            sweep,
            Options(storage=storage, tracking_uri=uri, cpus_per_trial=1),
            executor=os.environ.get("PFORCE_TEST_EXECUTOR", "local"),
            callbacks=[Hold(storage / "hold")],
            report=lambda plan, console: None,
        )
    )
