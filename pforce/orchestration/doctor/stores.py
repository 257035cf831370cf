"""Checks of the tracking store and the storage."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from pforce.base.words import counted
from pforce.executors.support.node import connect, write_error
from pforce.orchestration.doctor.check import Check
from pforce.storage import Storage, StorageError
from pforce.tracking import Tracker, TrackingError, mask, sqlite_path, sweep_names

STORE_SECONDS = 10.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def tracking(uri: str, storage: Path, *, limit: float = STORE_SECONDS) -> Check:
    """Check that the MLflow store answers in time and with this MLflow's schema."""
    name, shown = "MLflow store", mask(uri)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        if not database.parent.exists() or write_error(database.parent) is None:
            return Check(name, "ok", f"{shown}: not there yet; the first run makes it")
        cure = "Give --tracking-uri, or a --storage folder that can be written."
        return Check(name, "problem", f"{shown}: its folder cannot be written", cure)
    parts = urlsplit(uri)
    until = time.monotonic() + limit
    port = parts.port or PORTS.get(parts.scheme.split("+")[0])
    if parts.hostname and port:  # MLflow itself would retry for minutes
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
    return Check(name, "ok", f"{shown}: answers, its schema fits, {counted(len(result), 'sweep')}")


def storage_folder(storage: Storage) -> Check:
    """Check that the storage, a folder or a bucket, can be written from here."""
    try:
        storage.check()
    except StorageError as error:
        return Check("storage", "problem", str(error), "As the message says.")
    return Check("storage", "ok", f"{storage} can be written")
