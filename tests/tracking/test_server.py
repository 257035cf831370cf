"""A small sweep through a server as a team has it: PostgreSQL behind `mlflow server` that wants a password.

Oracle: MLflow's own client, which reads the runs and downloads their artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import mlflow
import pytest

from pforce import results
from pforce.base.console import DONE
from pforce.orchestration.axes import Axis
from pforce.orchestration.growth import keep_sweep
from pforce.orchestration.launch import execute
from pforce.tracking import TrackingError
from tests.orchestration.conftest import console, make_plan, small_sweep  # noqa: F401  # a fixture
from tests.support.clock import PATIENCE
from tests.tracking.servers import PASSWORD, MlflowServer, Postgres

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]


@pytest.fixture(scope="module")
def team_server(tmp_path_factory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("team")
    postgres = Postgres()
    postgres.start()
    try:
        for database in ("tracking", "users"):
            postgres.create(database)
        settings = folder / "auth.ini"
        settings.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {postgres.uri(database='users')}\n"
            f"admin_username = admin\nadmin_password = {PASSWORD}\nauth_cache_ttl_seconds = 60\n"
        )
        environment = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-tests-only"}
        server = MlflowServer(folder, "--app-name", "basic-auth", backend=postgres.uri(), env=environment)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        postgres.stop()


def test_a_sweep_through_a_server_with_a_password(team_server, tmp_path, console, capsys, monkeypatch):  # noqa: F811
    """None and a wrong password are errors before any training; with the right one the sweep ends, and runs once."""
    sweep = small_sweep(Axis("timesteps.sigma", (0.2, 0.5)))

    def planned():
        return make_plan(sweep, tmp_path, tracking_uri=team_server.uri)

    for password, match in ((None, "wants a user and a password"), ("wrong", "refuses this user and password")):
        if password is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        started = time.monotonic()
        with pytest.raises(TrackingError, match=f"{match} .HTTP 401.: set MLFLOW_TRACKING_USERNAME and"):
            planned()
        assert time.monotonic() - started < 10 * PATIENCE
    assert not (tmp_path / "trials").exists()

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    plan = planned()
    keep_sweep(plan)
    assert execute(plan, console, "local") == DONE
    frame = results.runs(team_server.uri)
    assert frame["status"].tolist() == ["FINISHED"] * 2
    client = mlflow.MlflowClient(team_server.uri)
    for run_id in frame["run_id"]:
        assert len(client.get_metric_history(run_id, "train/loss")) == 6
        names = {file.path for file in client.list_artifacts(run_id)}
        assert {"samples.png", "uncertainty_maps.png"} <= names
    stored = results.runs(tmp_path).set_index("fingerprint")["val/loss"]
    for fingerprint, loss in zip(frame["fingerprint"], frame["val/loss"], strict=True):
        assert stored[fingerprint] == loss
    assert client.get_run(frame["parent"][0]).info.status == "FINISHED"

    again = planned()
    assert again.missing == []
    assert execute(again, console, "local") == DONE
    assert len(results.runs(team_server.uri)) == 2
    assert PASSWORD not in capsys.readouterr().out
    assert PASSWORD not in "".join(str(run.data.tags) + str(run.data.params) for run in client.search_runs(["1"]))

    # In the address itself, as some keep it: it works there, and is shown nowhere.
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    uri = team_server.uri.replace("://", f"://admin:{PASSWORD}@")
    plan = make_plan(sweep, tmp_path, tracking_uri=uri)
    assert plan.missing == []
    assert PASSWORD not in plan.tracker.shown
