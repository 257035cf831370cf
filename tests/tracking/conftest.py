"""What the tests of tracking share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pforce.storage import Storage
from pforce.tracking import Mirror, Tracker
from tests.tracking.cells import sqlite_mirror
from tests.tracking.servers import MlflowServer


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[MlflowServer]:
    """An MLflow server on a sqlite database; each test uses its own experiment."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def mirror(tmp_path) -> Mirror:
    return sqlite_mirror(tmp_path)


@pytest.fixture(params=["sqlite", "server"])
def any_mirror(request, tmp_path, server) -> Mirror:
    """A mirror of a database that is written into, and of a server; the server's tests have names of their own."""
    if request.param == "sqlite":
        return sqlite_mirror(tmp_path)
    return Mirror(Tracker(server.uri, artifacts=tmp_path), Storage.open(tmp_path), print)
