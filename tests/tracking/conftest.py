"""What the tests of tracking share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tracking.servers import MlflowServer


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[MlflowServer]:
    """An MLflow server on a sqlite database; each test uses its own experiment."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()
