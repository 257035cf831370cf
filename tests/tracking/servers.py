"""Real servers for tests: `mlflow server`, and a PostgreSQL of this machine's packages. Each ends what it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
import sqlalchemy

from tests.support.ports import free_port

START_SECONDS = 90
PASSWORD = "correct-horse-battery"


POSTGRES = "postgresql" if sqlalchemy.__version__ >= "2.1" else "postgresql+psycopg"
"""What SQLAlchemy calls a PostgreSQL that psycopg connects to."""


class MlflowServer:
    """`mlflow server` on loopback; killed and started again on the same port, database and artifacts."""

    def __init__(self, folder: Path, *options: str, backend: str | None = None, env: Mapping[str, str] = {}) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.backend = backend or f"sqlite:///{folder / 'server.db'}"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend, "--port", str(self.port),
            "--artifacts-destination", str(folder / "artifacts"), "--workers", "1", *options,
        ]  # fmt: skip
        self.env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **env}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "server.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to the server and its workers, which are a process group of their own."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes: SIGSTOP makes a server that accepts and does not answer."""
        assert self.process is not None
        os.killpg(self.process.pid, number)


class Postgres:
    """PostgreSQL on loopback, with the user `pforce` who needs a password, in a folder that `stop` removes."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
        self.binaries, self.port = found[-1].parent, free_port()
        # Not pytest's folder: another user cannot enter that one.
        self.folder, self.user = Path(tempfile.mkdtemp(prefix="pforce-postgres-")), list[str]()
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            runuser = shutil.which("runuser", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
            if runuser is None:
                pytest.skip("PostgreSQL cannot be started as root, and runuser is not there")
            self.user = [runuser, "-u", "postgres", "--"]
            shutil.chown(self.folder, "postgres")
        self.process: subprocess.Popen[bytes] | None = None

    def uri(self, password: str = PASSWORD, database: str = "tracking") -> str:
        return f"{POSTGRES}://pforce:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        data, word = self.folder / "data", self.folder / "password"
        if not data.exists():
            word.write_text(PASSWORD)
            if self.user:
                shutil.chown(word, "postgres")
            self._run("initdb", "-D", str(data), "-U", "pforce", "--auth=scram-sha-256", f"--pwfile={word}")
        self.process = subprocess.Popen(
            [*self.user, str(self.binaries / "postgres"), "-D", str(data), "-p", str(self.port),
             "-c", "listen_addresses=127.0.0.1", "-k", str(self.folder), "-c", "fsync=off"],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=(self.folder / "log").open("ab"),
        )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while subprocess.run(
            [str(self.binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)],
            check=False, capture_output=True,
        ).returncode:  # fmt: skip
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.1)

    def create(self, database: str) -> None:
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "pforce", database)

    def _run(self, program: str, *arguments: str) -> None:
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        subprocess.run(
            [*self.user, str(self.binaries / program), *arguments],
            check=True, cwd=self.folder, env=environment, capture_output=True, timeout=START_SECONDS,
        )  # fmt: skip

    def stop(self) -> None:
        """End it and its workers, as an administrator does; `immediate` needs no checkpoint."""
        if self.process is not None and self.process.poll() is None:
            self._run("pg_ctl", "stop", "-D", str(self.folder / "data"), "-m", "immediate")
            self.process.wait(timeout=START_SECONDS)
        shutil.rmtree(self.folder)
