"""Options and texts that several commands share, and access to a tracking store that is only read."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated

import pandas as pd
import tyro
from rich.console import Console

from pforce.base.console import duration
from pforce.orchestration.options import StorageOptions, StoreOptions
from pforce.tracking import Tracker

Place = Annotated[StorageOptions, tyro.conf.arg(name="")]
"""Option of a command that reads or writes a storage only."""
Store = Annotated[StoreOptions, tyro.conf.arg(name="")]
"""Options of a command that also needs MLflow's store."""
FIRST_RUN = "pforce train openmoji32_micro, or a script of sweeps/, makes the first"
SHORT = 28
"""Most characters of a name that is never broken into lines."""
WIDE = 120
"""Columns of a terminal on which tables are shown in full."""
NONE = "–"
"""Sign for an unknown value."""


def open_store(store: StoreOptions, console: Console) -> Tracker | None:
    """The store; None, after a message, where there is none yet. TrackingError where it cannot be read, StorageError
    where the storage does not exist, ConfigError where it cannot hold a database.

    Reading must not create a database: the first run creates the default one.
    """
    place = store.place
    if store.tracking_uri is None and not place.remote and not (place.root / "mlflow.db").exists():
        console.print(
            f"No runs yet in {place.root}: {FIRST_RUN}. Runs elsewhere are read with --storage or --tracking-uri.",
            soft_wrap=True,
        )
        return None
    return store.tracker


def clock(time: pd.Timestamp, now: pd.Timestamp) -> str:
    """A UTC time of the store in this machine's time zone: `14:03` today, else `23 Nov 14:03`."""
    if pd.isna(time):
        return NONE
    local, today = (datetime.fromtimestamp(each.tz_localize("UTC").timestamp()) for each in (time, now))
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local.day} {local:%b %H:%M}"


def about(seconds: float) -> str:
    """Duration such as `4 min 10 s`; without seconds from ten minutes on; a dash for NaN."""
    return (
        NONE
        if math.isnan(seconds)
        else duration(seconds if seconds < 600 else 60 * round(seconds / 60)).removesuffix(" 0 s")
    )
