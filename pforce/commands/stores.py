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
from pforce.records.sweeps import names_of_sweeps
from pforce.storage.identity import FILE as STORAGE
from pforce.storage.identity import identity_of
from pforce.tracking import Tracker, default_database, sqlite_path
from pforce.tracking.view import key_of

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
    if store.tracking_uri is None and not place.remote and not default_database(place.root).exists():
        console.print(
            f"No runs yet in {place.root}: {FIRST_RUN}. Runs elsewhere are read with --storage or --tracking-uri."
            f"{_local(store)}",
            soft_wrap=True,
        )
        return None
    return store.tracker


def own_pages(store: StoreOptions, *, everyone: bool) -> list[str] | None:
    """Keys of the pages of a storage's sweeps, of which alone runs are read in a store of several people; None, for all
    pages, in a sqlite database.

    Args:
        everyone: read all pages of such a store, too.
    """
    place = store.place
    if everyone or sqlite_path(store.uri) is not None:
        return None
    if not place.has(STORAGE):  # nothing of it was ever shown
        return []
    return [key_of(identity_of(place), name) for name in names_of_sweeps(place)]


def nothing_there(tracker: Tracker, store: StoreOptions, own: list[str] | None) -> str:
    """A sentence that says that there are no runs, and how to get some.

    Args:
        own: keys of the pages that were read, as `own_pages` gives them.
    """
    if own is None:
        return f"No runs yet in {tracker.shown}: {FIRST_RUN}.{_local(store)}"
    return f"No runs of {store.place} in {tracker.shown}. Those of other storages and people: --everyone."


def _local(store: StoreOptions) -> str:
    """The end of a message that there are no runs, where another machine's may be in the storage."""
    return f" {note}." if (note := store.local_note) else ""


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
