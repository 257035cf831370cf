"""What Ray Tune runs in a trial's process. A module of its own: the process imports this and no tracking store."""

from __future__ import annotations

from ray import tune

from pforce.orchestration.worker import CellFailed, Payload, run_cell


def trainable(config: dict[str, Payload]) -> None:
    """A Tune function trainable: one trial, in this process."""
    try:
        run_cell(config["trial"], tune.report)
    except CellFailed as failure:
        tune.report({"phase": "failing", "reason": failure.reason, "error": failure.message})
        raise
