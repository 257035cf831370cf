"""A connection to an MLflow store: a sqlite database below the storage, another database, or a server."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

from pforce.base import mounts
from pforce.base.files import cache_folder, give_by_umask, read_whole, write_bytes
from pforce.base.secrets import mask, private_folder
from pforce.tracking.checks import (
    TrackingError,
    check_store,
    check_writable,
    is_server,
    set_up,
    sqlite_path,
    sqlite_uri,
)

STALE_SECONDS = 600
LOCAL = Path("/var/tmp")
"""Folder of a local disk that all users share."""


def is_installed() -> bool:
    """Whether MLflow is installed. Results are in the storage in any case."""
    return importlib.util.find_spec("mlflow") is not None


def default_database(storage: Path, table: str | Path = mounts.TABLE) -> Path:
    """File of the sqlite database of a storage for which no store is given: `mlflow.db` in its folder; where machines
    share that over a network and none is there yet, a file on a local disk, as the locks that sqlite needs may not hold
    on the network.

    It lies in the cache folder, or below /var/tmp in a folder of this user's own, under a hash of the storage's path.

    Args:
        table: file of all mounts; see `mounts.mount_of`.

    Raises:
        TrackingError: the folder below /var/tmp is somebody else's, or cannot be made.
    """
    path = storage.resolve()
    own = path / "mlflow.db"
    if os.path.lexists(own) or mounts.on_network(path, table) is None:
        return own
    name = f"{hashlib.blake2b(os.fsencode(path), digest_size=12).hexdigest()}.db"
    cache = cache_folder().absolute()
    if mounts.on_network(cache, table) is None and _can_be_made(cache):
        return cache / "databases" / name
    if mounts.on_network(LOCAL, table) is not None:
        return own  # there is no local disk
    folder = LOCAL / f"pforce-{os.getuid()}"
    try:
        return private_folder(folder) / name
    except OSError as error:
        raise TrackingError(
            f"tracking database: {path} lies on a network, and {folder} cannot hold a database ({error}): give "
            "--tracking-uri, or set PFORCE_CACHE to a folder of a local disk"
        ) from error


def _can_be_made(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def default_uri(storage: Path, table: str | Path = mounts.TABLE) -> str:
    """URI of a storage's `default_database`."""
    return sqlite_uri(default_database(storage, table))


def local_note(storage: Path, table: str | Path = mounts.TABLE) -> str:
    """A sentence that says where a storage's default database lies, if not in its folder; else empty."""
    database, mount = default_database(storage, table), mounts.on_network(storage, table)
    if database.is_relative_to(storage.resolve()) or mount is None:
        return ""
    return (
        f"MLflow's database is {database}, on this machine, as {storage} lies on {mount}, where sqlite is not to be "
        f"trusted; another machine builds its own from the storage: pforce mirror --storage {storage}"
    )


def _make_database(uri: str) -> None:
    """Make a sqlite database that does not exist, whole or not at all. MLflow takes seconds to make one, and a process
    that is killed meanwhile would leave one that looks like an older version's."""
    path = sqlite_path(uri)
    if path is None or path.exists():
        return
    if path.is_symlink():  # sqlite would make its target
        raise TrackingError(f"tracking database {uri}: {path} is a link to nothing; remove it")
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        _make_empty(scratch)
        give_by_umask(scratch)  # sqlite gives 0644
        try:
            path.hardlink_to(scratch)
        except FileExistsError:  # another process was faster
            pass
        except OSError:  # a file system without hard links, where one of two simultaneous processes may lose a race
            scratch.rename(path)
    for left in path.parent.glob(".mlflow-*"):  # left by killed processes
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _make_empty(path: Path) -> None:
    """Make an empty database of this version of MLflow: a copy of the first one, which takes seconds to make."""
    import mlflow

    kept = cache_folder() / "mlflow" / f"empty-{mlflow.__version__}.db"
    with suppress(OSError, sqlite3.Error):
        shutil.copyfile(kept, path)
        with closing(sqlite3.connect(path)) as connection:
            whole = connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            if whole and connection.execute("SELECT version_num FROM alembic_version").fetchall():
                return
    path.unlink(missing_ok=True)
    mlflow.MlflowClient(tracking_uri=sqlite_uri(path)).search_experiments(max_results=1)
    with suppress(OSError):
        write_bytes(kept, read_whole(path))


class Tracker:
    """A connection to one MLflow store. TrackingError where it does not answer or cannot be written.

    Args:
        artifacts: folder of the artifacts of new experiments, where the store is a database.
        make: make a sqlite database that is not there; whoever only reads makes none.
    """

    def __init__(self, uri: str, *, artifacts: Path, make: bool = True) -> None:
        set_up()
        self.uri = uri
        path = sqlite_path(uri)
        if path is not None and not make and not path.exists():
            raise TrackingError(f"tracking database {uri}: {path} is not there; give the database of a sweep")
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrackingError(f"tracking database {uri}: cannot make {path.parent}: {error}") from error
            # A pool of connections would keep writing into a file that has been deleted.
            os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        self.artifacts = artifacts
        check_store(uri)
        import mlflow

        try:
            _make_database(uri)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            if not is_server(uri):  # a server was just asked the same by the check
                self.client.search_experiments(max_results=1)
        except Exception as error:  # every kind of store raises its own; all mean that it cannot be used
            raise TrackingError(
                f"tracking store {self.shown} cannot be used: {error}. Check the URI (--tracking-uri) and its "
                "permissions."
            ) from error

    @property
    def shown(self) -> str:
        """The URI for messages, without a password."""
        return mask(self.uri)

    def check(self) -> None:
        """Raise TrackingError where the store cannot be written, as with a locked or read-only database."""
        check_writable(self.uri)

    def again(self) -> None:
        """Make a sqlite database again that has vanished since."""
        path = sqlite_path(self.uri)
        if path is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_database(self.uri)
