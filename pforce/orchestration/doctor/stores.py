"""Checks of the tracking store and the storage."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from pforce.base.mounts import on_network
from pforce.base.words import counted
from pforce.executors.support.node import connect
from pforce.executors.support.surroundings import write_error
from pforce.orchestration.doctor.check import Check
from pforce.orchestration.doctor.places import direct
from pforce.orchestration.doctor.promises import SQLITE
from pforce.storage import Storage, StorageError
from pforce.tracking import Tracker, TrackingError, mask, sqlite_path, sweep_names

STORE_SECONDS = 10.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def tracking(uri: str, storage: Path, *, limit: float = STORE_SECONDS, note: str = "") -> Check:
    """Check that the MLflow store answers in time and with this MLflow's schema.

    Args:
        note: a sentence about where it lies.
    """
    name, shown = "MLflow store", mask(uri)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        if not database.parent.exists() or write_error(database.parent) is None:
            return _on_disk(f"{shown}: not there yet; the first run makes it", database, note)
        cure = "Give --tracking-uri, or a --storage folder that can be written."
        return Check(name, "problem", f"{shown}: its folder cannot be written", cure)
    parts = urlsplit(uri)
    until = time.monotonic() + limit
    port = parts.port or PORTS.get(parts.scheme.split("+")[0])
    if parts.hostname and port and direct(uri):  # MLflow itself would retry for minutes
        try:
            connect(parts.hostname, port, limit / 2)
        except OSError as error:
            text = f"{shown}: nothing answers at {parts.hostname}:{port}: {error.strerror or error}"
            cure = "Start the server, or check --tracking-uri and the network (proxy, firewall, VPN)."
            return Check(name, "problem", text, cure)
    found: list[list[str] | TrackingError | Exception] = []

    def ask() -> None:
        try:
            found.append(sweep_names(Tracker(uri, artifacts=storage / "artifacts")))
        except Exception as error:  # an exception in this thread would be lost
            found.append(error)

    # A daemon thread, so that a server that never answers does not keep the command from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    if not found:
        cure = "See whether the server is overloaded, or another process holds the database; then retry."
        return Check(name, "problem", f"{shown}: no answer within {limit:.0f} s", cure)
    (result,) = found
    if isinstance(result, TrackingError):
        return Check(name, "problem", mask(str(result)), "As the message says.")
    if isinstance(result, Exception):
        raise result
    return _on_disk(f"{shown}: answers, its schema fits, {counted(len(result), 'sweep')}", database, note)


def _on_disk(text: str, database: Path | None, note: str) -> Check:
    """A store that can be used; a sqlite database had better not lie on a network file system."""
    mount = None if database is None else on_network(database.parent)
    if mount is None:
        return Check("MLflow store", "ok", text, note)
    on = f"{text}; it lies on {mount}, where sqlite is not to be trusted"
    return Check("MLflow store", "warning", on, SQLITE)


def storage_folder(storage: Storage) -> Check:
    """Check that the storage, a folder or a bucket, can be written from here."""
    try:
        storage.check()
    except StorageError as error:
        return Check("storage", "problem", str(error), "As the message says.")
    if not storage.remote and (reason := write_error(storage.root)) is not None:
        cure = "Make room there, ask for a larger quota, or give another --storage."
        return Check("storage", "problem", f"{storage}: a file of 1 MiB cannot be written: {reason}", cure)
    return Check("storage", "ok", f"{storage} can be written")
