"""Reading MLflow back as one tidy frame: a row a trial."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pforce.tracking.store import PARENT, Tags, Tracker


def _experiments(tracker: Tracker) -> list[Any]:
    """All experiments; the store gives a page at a time."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = tracker.client.search_experiments(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def runs_frame(tracker: Tracker, sweep: str | None = None) -> pd.DataFrame:
    """All trials, a row each: run_id, run_name, status, fingerprint, sweep, seed, parameters, last metrics.

    Parameters keep their dotted paths (`timesteps.m`), metrics their names (`val/loss`); parameters that are
    numbers are numbers. Failed, killed and running trials are there with their status. A run that was taken up
    again is one row; of a metric that it logged twice the value of the later step counts, at one step the later one.

    Args:
        sweep: name (MLflow experiment) of one sweep; None reads all.
    """
    experiments = [e for e in _experiments(tracker) if sweep is None or e.name == sweep]
    rows: list[dict[str, Any]] = []
    token: str | None = None
    while experiments:
        page = tracker.client.search_runs(
            [e.experiment_id for e in experiments],
            filter_string=f"tags.`{Tags.KIND}` = 'trial'",
            max_results=1000,
            page_token=token,
        )
        names = {e.experiment_id: e.name for e in experiments}
        rows += [
            {
                "run_id": run.info.run_id,
                "run_name": run.info.run_name,
                "status": run.info.status,
                "start_time": pd.Timestamp(run.info.start_time, unit="ms"),
                "sweep": names[run.info.experiment_id],
                "parent": run.data.tags.get(PARENT),
                "fingerprint": run.data.tags.get(Tags.FINGERPRINT),
                "training": run.data.tags.get(Tags.TRAINING),
                "reason": run.data.tags.get(Tags.REASON),
                **run.data.params,
                **run.data.metrics,
            }
            for run in page
        ]
        token = page.token
        if not token:
            break
    frame = pd.DataFrame(rows)
    for column in frame.columns.difference(
        ["run_id", "run_name", "status", "sweep", "parent", "fingerprint", "training", "reason"]
    ):
        if frame[column].dtype == object or str(frame[column].dtype) in ("str", "string"):
            numbers = pd.to_numeric(frame[column], errors="coerce")
            # A column is numeric where every value that is there is a number.
            if numbers.notna().sum() == frame[column].notna().sum():
                frame[column] = numbers
    return frame
