"""The commands of `cluster/mlflow/compose.yaml`, run without containers: a real PostgreSQL, MLflow's real server, the
backup and the restore. Oracle: MLflow's own client, which reads the run back from the second database.
"""

from __future__ import annotations

import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException

from tests.support.manifests import ROOT
from tests.tracking.servers import PASSWORD, MlflowServer, Postgres

FOLDER = ROOT / "cluster" / "mlflow"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
ENV = {"DB_PASSWORD": PASSWORD, "ADMIN_PASSWORD": "admin-of-a-test", "SECRET_KEY": "for-tests-only"}
CHART_KEYS = (Path(__file__).parent / "mlflow_chart_keys.txt").read_text().split()


def filled(text: str) -> str:
    """A text of the file, as compose fills in its variables: those of `.env`, then defaults."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        return ENV.get(name, default[2:] if default and default.startswith(":-") else "") or pytest.fail(name)

    return re.sub(r"\$\{([A-Z_]+)(:[-?][^}]*)?\}", value, text)


class Deployment:
    """The compose file's services as processes, with a PostgreSQL of their own.

    What differs from containers: places of folders, the port, and the names of the database's host and user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.postgres = folder, Postgres()
        self.server: MlflowServer | None = None
        for name in ("artifacts", "backup"):
            (folder / name).mkdir(parents=True)

    def environment(self, service: str) -> dict[str, str]:
        given = {name: filled(str(value)) for name, value in COMPOSE["services"][service]["environment"].items()}
        assert given["PGPASSWORD"] == PASSWORD
        given |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.postgres.port), "PGUSER": "pforce"}
        given |= {"ARTIFACTS": str(self.folder / "artifacts"), "HOME": str(self.folder)}
        if "MLFLOW_AUTH_CONFIG_PATH" in given:
            given["MLFLOW_AUTH_CONFIG_PATH"] = str(self.mounted("server", given["MLFLOW_AUTH_CONFIG_PATH"]))
        return {**os.environ, **given, "PATH": f"{self.postgres.binaries}:{os.environ['PATH']}"}

    @staticmethod
    def mounted(service: str, inside: str) -> Path:
        """The file of this folder that a container sees at a path."""
        for volume in COMPOSE["services"][service]["volumes"]:
            ours, theirs, *_ = filled(volume).split(":")
            if theirs == inside:
                return FOLDER / ours
        pytest.fail(f"{inside} is not mounted")

    def start_database(self) -> None:
        """PostgreSQL, with what its container makes at its first start."""
        self.postgres.start()
        self.postgres.create(COMPOSE["services"]["db"]["environment"]["POSTGRES_DB"])
        made = (FOLDER / "users.sql").read_text()
        words = ["psql", "--dbname=mlflow", "--set=ON_ERROR_STOP=1", "--command", made]
        subprocess.run(words, env=self.environment("backup"), check=True, capture_output=True, timeout=60)

    def start_server(self) -> MlflowServer:
        """`mlflow server` with the file's own command line."""
        self.server = MlflowServer(self.folder / "server", env=self.environment("server"))
        port = str(self.server.port)
        mlflow_command, *options = (filled(word) for word in COMPOSE["services"]["server"]["command"])
        assert mlflow_command == "mlflow"
        options = [word.replace("0.0.0.0", "127.0.0.1").replace("5000", port) for word in options]
        options = [word.replace("=/artifacts", f"={self.folder / 'artifacts'}") for word in options]
        self.server.command[3:] = options
        self.server.start()
        return self.server

    def run(self, service: str, *words: str) -> str:
        """`docker compose run --rm SERVICE [WORDS]`."""
        command = [*COMPOSE["services"][service]["entrypoint"], *(words or COMPOSE["services"][service]["command"])]
        command[1] = str(self.mounted(service, command[1]))
        command = [
            word.replace("/backup/", f"{self.folder / 'backup'}/") if word != command[1] else word for word in command
        ]
        command = [str(self.folder / "backup") if word == "/backup" else word for word in command]
        done = subprocess.run(
            command, env=self.environment(service), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> None:
        if self.server is not None:
            self.server.kill()
        if self.postgres.folder.exists():
            self.postgres.stop()


@pytest.fixture
def deployment(tmp_path) -> Iterator[Deployment]:
    made = Deployment(tmp_path / "first")
    try:
        made.start_database()
        yield made
    finally:
        made.stop()


def status(uri: str, host: str | None = None) -> int:
    """The status of an answer to a request without user and password."""
    request = urllib.request.Request(uri, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.drill
@pytest.mark.timeout(300)
def test_a_run_outlives_its_database(deployment, tmp_path, monkeypatch):
    """Refused without a password and under another host's name; created; backed up; found in a second database."""
    server = deployment.start_server()
    assert status(f"{server.uri}/health") == 200, "what the health check asks needs no password"
    assert status(f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1") == 401
    assert status(f"{server.uri}/", host="elsewhere.example") == 403
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    client = mlflow.MlflowClient(server.uri)
    with pytest.raises(MlflowException, match="401"):
        client.create_experiment("kept")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ENV["ADMIN_PASSWORD"])
    run = client.create_run(client.create_experiment("kept"))
    client.log_metric(run.info.run_id, "val/loss", 0.25, step=640)
    client.log_text(run.info.run_id, "a table", "sweep.html")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:"), "proxied: clients need no access to the files"
    backup = Path(deployment.run("backup"))
    assert sorted(path.name for path in backup.iterdir()) == ["artifacts.tar", "mlflow.dump", "users.dump"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in backup.iterdir()), "users' password hashes are in it"
    client.delete_run(run.info.run_id)
    deployment.stop()

    second = Deployment(tmp_path / "second")
    try:
        second.start_database()
        (second.folder / "backup" / backup.name).symlink_to(backup)
        (second.folder / "backup" / "latest").symlink_to(backup.name)
        second.run("restore")
        client = mlflow.MlflowClient(second.start_server().uri)
        found = client.get_run(run.info.run_id)
        assert found.info.lifecycle_stage == "active"
        assert found.data.metrics == {"val/loss": 0.25}
        table = client.download_artifacts(run.info.run_id, "sweep.html", str(tmp_path))
        assert Path(table).read_text() == "a table"
    finally:
        second.stop()


def test_half_a_backup_is_not_restored(tmp_path):
    (tmp_path / "mlflow.dump").write_bytes(b"x")
    done = subprocess.run(
        ["bash", str(FOLDER / "restore"), str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "users.dump is missing or empty: nothing was changed" in done.stderr


def test_what_a_team_needs_is_in_the_command():
    words = COMPOSE["services"]["server"]["command"]
    assert {"--serve-artifacts", "--app-name=basic-auth"} < set(words)
    assert any(word.startswith("--allowed-hosts=") and "*" not in word for word in words)


def test_no_password_is_written_down_and_none_may_be_empty():
    text = (FOLDER / "compose.yaml").read_text()
    for name in ENV:
        assert re.findall(rf"\${{{name}([^}}]*)}}", text), name
        assert set(re.findall(rf"\${{{name}([^}}]*)}}", text)) == {":?in .env"}
    assert not re.search(r"password", (FOLDER / "auth.ini").read_text().split("[mlflow]")[1].replace("A password", ""))


def test_only_the_server_listens_outside_and_on_loopback():
    services = COMPOSE["services"]
    assert [name for name, service in services.items() if service.get("ports")] == ["server"]
    assert services["server"]["ports"] == ["${LISTEN:-127.0.0.1}:5000:5000"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("server", "backup", "restore"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["user"] == "10001:0"


def keys(value: object, above: str = "") -> Iterator[str]:
    """Keys of nested mappings, as `server.staticPrefix`."""
    if not isinstance(value, dict) or not value:
        yield above
        return
    for key, inner in value.items():
        yield from keys(inner, f"{above}.{key}" if above else key)


def test_the_values_keys_are_the_charts():
    """Oracle: the keys of the chart's values.yaml, as its repository has them. Below `server.value_options` they are
    options of `mlflow server`, and below security contexts and resources Kubernetes' own."""
    values = yaml.safe_load((FOLDER / "values.yaml").read_text())
    free = ("server.value_options.", "podSecurityContext.", "securityContext.", "resources.")
    unknown = [key for key in keys(values) if key not in CHART_KEYS and not key.startswith(free)]
    assert unknown == []
    from mlflow.cli import server as command

    options = {name.lstrip("-").replace("-", "_") for option in command.params for name in option.opts}
    assert set(values["server"]["value_options"]) <= options
    assert set(values["server"]["flag_options"]) <= options


def test_the_chart_and_the_file_serve_the_same():
    values = yaml.safe_load((FOLDER / "values.yaml").read_text())
    image = COMPOSE["services"]["server"]["image"]
    assert image == f"ghcr.io/mlflow/mlflow:{values['image']['tag']}"
    command = COMPOSE["services"]["server"]["command"]
    assert f"--backend-store-uri={values['mlflow']['backendStoreUri']}" in command
    assert f"--app-name={values['server']['value_options']['app_name']}" in command
    locked = (ROOT / "cluster" / "container" / "requirements.txt").read_text()
    assert f"\nmlflow=={image.split(':v')[1].removesuffix('-full')} " in locked, "client and server are of one release"
