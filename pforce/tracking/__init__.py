"""Tracking in MLflow: the only package that imports it. Runs, the ledger of finished cells, reading back."""

from pforce.tracking.reading import runs_frame
from pforce.tracking.store import PARENT, RunSpec, Status, SweepRun, Tags, Tracker, TrackingError, default_uri

__all__ = ["PARENT", "RunSpec", "Status", "SweepRun", "Tags", "Tracker", "TrackingError", "default_uri", "runs_frame"]
