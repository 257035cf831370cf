"""Tracking in MLflow: the only package that imports it. Runs, the ledger of finished cells, reading back."""

from pforce.tracking.checks import TrackingError, is_server, mask, sqlite_path
from pforce.tracking.courier import PARENT_KEY
from pforce.tracking.delivery import SPOOL, Delivery, deliver_leftovers
from pforce.tracking.reading import CELLS, runs_frame, sweep_names, sweeps_frame
from pforce.tracking.store import PARENT, RunSpec, Status, SweepRun, Tags, Tracker, default_uri

__all__ = [
    "CELLS",
    "PARENT",
    "PARENT_KEY",
    "SPOOL",
    "Delivery",
    "RunSpec",
    "Status",
    "SweepRun",
    "Tags",
    "Tracker",
    "TrackingError",
    "default_uri",
    "deliver_leftovers",
    "is_server",
    "mask",
    "runs_frame",
    "sqlite_path",
    "sweep_names",
    "sweeps_frame",
]  # fmt: skip
