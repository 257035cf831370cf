"""Tidy frames of what is in a tracking store."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pforce.tracking import Tracker, runs_frame


def runs(tracking_uri: str, sweep: str | None = None) -> pd.DataFrame:
    """A row a trial: run_id, status, fingerprint, every parameter by its dotted path, every metric's last value.

    Args:
        tracking_uri: `sqlite:///…/mlflow.db` or a server. TrackingError where it cannot be read.
        sweep: name of one sweep (its MLflow experiment), such as `ltg_grid`; None reads all.
    """
    return runs_frame(Tracker(tracking_uri, artifacts=Path("runs")), sweep)
