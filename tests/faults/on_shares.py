"""`sweeps/ltg_grid.py` on a cluster whose GPU is none: `python -m tests.faults.on_shares ARGUMENTS`.

The cluster counts a GPU that the machine does not have, so workers reserve their share of it and compute on the CPU.
"""

from __future__ import annotations

from typing import Any

from pforce.base.console import exit_on_errors
from pforce.executors import tune
from pforce_experiments.sweeps.ltg_grid import main


class _OnCpu(tune.Executor):
    """The executor on Ray Tune; its workers compute on the CPU whatever they reserve."""

    @property
    def worker_config(self) -> dict[str, Any]:
        return {**super().worker_config, "gpus": 0.0}


if __name__ == "__main__":
    tune.Executor = _OnCpu  # type: ignore[misc]
    exit_on_errors(main)
