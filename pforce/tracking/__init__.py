"""Tracking in MLflow: runs that show what a storage holds, and frames read from them. The only package that imports
mlflow."""

from pforce.base.secrets import mask
from pforce.records.status import Status
from pforce.tracking.checks import TrackingError, is_server, sqlite_path
from pforce.tracking.live import Live
from pforce.tracking.mirror import Mirror
from pforce.tracking.page import Page, Shown
from pforce.tracking.reading import cell_of_run, runs_frame, sweep_names, sweeps_frame
from pforce.tracking.store import Tracker, default_database, default_uri, is_installed, local_note
from pforce.tracking.view import PARENT, Point, Tags, View

__all__ = [
    "PARENT",
    "Live",
    "Mirror",
    "Page",
    "Point",
    "Shown",
    "Status",
    "Tags",
    "Tracker",
    "TrackingError",
    "View",
    "cell_of_run",
    "default_database",
    "default_uri",
    "is_installed",
    "is_server",
    "local_note",
    "mask",
    "runs_frame",
    "sqlite_path",
    "sweep_names",
    "sweeps_frame",
]  # fmt: skip
