"""Stores that cannot be used: said within ten seconds, with the cure, before any training, and without passwords."""

from __future__ import annotations

import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import InitialBase, _get_alembic_config

from pforce.base.console import exit_on_errors, make_console
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep_report import print_mlflow
from pforce.tracking import Tracker, TrackingError, checks, default_uri, mask
from pforce.tracking.checks import store_name
from tests.orchestration.conftest import make_plan, small_sweep
from tests.support.clock import PATIENCE
from tests.tracking.servers import PASSWORD, POSTGRES, Postgres, free_port

pytestmark = pytest.mark.timeout(400)
SECONDS = 10.5
"""The limit of the issue, and half a second to compare clocks in."""


@contextmanager
def refused(match: str) -> Iterator[None]:
    """A TrackingError with that text, in time."""
    started = time.monotonic()
    with pytest.raises(TrackingError, match=match) as caught:
        yield
    assert time.monotonic() - started < SECONDS * PATIENCE
    assert PASSWORD not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.process
def test_a_database_of_an_older_schema_is_left_as_it_is(tmp_path):
    """Made by MLflow's own migrations, stopped before the last. The command that the error names is its cure."""
    uri = default_uri(tmp_path)
    engine = sqlalchemy.create_engine(uri)
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(uri)
    head = ScriptDirectory.from_config(config).get_current_head()
    command.upgrade(config, f"{head}-1")
    engine.dispose()
    before = (tmp_path / "mlflow.db").read_bytes()
    with refused(r"older schema .* Back it up first, then run: mlflow db upgrade sqlite:///.*mlflow\.db$"):
        Tracker(uri, artifacts=tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True)
    Tracker(uri, artifacts=tmp_path).client.create_experiment("grid")


def test_a_database_of_a_newer_mlflow_is_refused(tmp_path):
    tracker = Tracker(default_uri(tmp_path), artifacts=tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fffffffffff0'")
        connection.commit()
    with refused("fffffffffff0.* does not know: a newer MLflow made it"):
        Tracker(tracker.uri, artifacts=tmp_path)


LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print("locked", flush=True)
time.sleep(60)
"""


@pytest.mark.process
@pytest.mark.parametrize("kind", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_database_locked_by_another_process(tmp_path, kind, monkeypatch):
    """Before any training, with nothing written; reading goes on where the lock lets it."""
    monkeypatch.setattr(checks, "LOCK_SECONDS", 1.0)
    make_plan(small_sweep(), tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(tmp_path / "mlflow.db"), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        with refused(r"is locked: another process has held its write lock .*fuser -v .*mlflow\.db"):
            make_plan(small_sweep(), tmp_path)
    finally:
        process.kill()
        process.communicate()
    make_plan(small_sweep(), tmp_path)


def test_nothing_listens(tmp_path):
    with refused("nothing listens there .*mlflow server"):
        Tracker(f"http://127.0.0.1:{free_port()}", artifacts=tmp_path)


def test_a_name_that_dns_does_not_know(tmp_path):
    with refused("name is unknown to DNS|did not answer within 10 s"):
        Tracker("http://user:secret@no-such-host.invalid:5000", artifacts=tmp_path)


def test_a_server_that_accepts_and_never_answers(tmp_path, capsys, monkeypatch):
    """Through a whole script: exit code 2, no trial's folder."""
    monkeypatch.setattr(checks, "ANSWER_SECONDS", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        uri = f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}"
        with refused("it does not answer in time"):
            Tracker(uri, artifacts=tmp_path)
        with pytest.raises(SystemExit) as ended:
            exit_on_errors(
                lambda: run_sweep(small_sweep(), Options(storage=str(tmp_path), tracking_uri=uri), executor="local")
            )
    assert ended.value.code == 2
    text = capsys.readouterr()
    assert "user:***@127.0.0.1" in text.err
    assert "secret" not in text.err + text.out
    assert not (tmp_path / "trials").exists()


def test_another_server_than_mlflow(tmp_path):
    web = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with refused("answers, but not as an MLflow server does .HTTP 404"):
        Tracker(f"http://127.0.0.1:{web.server_address[1]}", artifacts=tmp_path)
    web.shutdown()


def test_a_database_that_refuses(tmp_path):
    postgres = Postgres()
    postgres.start()
    try:
        with refused("password authentication failed .*Check user and password"):
            Tracker(postgres.uri("secret"), artifacts=tmp_path)
        with refused(r'database "tracking" does not exist.*createdb tracking'):
            Tracker(postgres.uri(), artifacts=tmp_path)
        postgres.create("tracking")
        tracker = Tracker(postgres.uri(), artifacts=tmp_path)
        assert tracker.shown == f"{POSTGRES}://pforce:***@127.0.0.1:{postgres.port}/tracking"
    finally:
        postgres.stop()
    with refused("Connection refused.*Check host and port"):
        Tracker(postgres.uri(), artifacts=tmp_path)


@pytest.mark.process
def test_a_missing_driver_is_named():
    """In a process of its own whose imports of psycopg fail, as without the package."""
    code = """
import sys
sys.modules["psycopg"] = None
from pforce.tracking.checks import check_store
check_store("postgresql://pforce:secret@127.0.0.1/tracking")
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    last = ended.stderr.strip().splitlines()[-1]
    assert re.search(r"its driver is not installed .*pip install 'pforce\[postgres\]'", last)
    assert "secret" not in last


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:p%40ss@host:5432/db: no", "at postgresql://me:***@host:5432/db: no"),
        ("postgresql+psycopg2://me:a/b@c@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("https://me:x@host/prefix", "https://me:***@host/prefix"),
        ("mysql://host/db?user=me&password=x&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////tmp/a:b/mlflow.db", "sqlite:////tmp/a:b/mlflow.db"),
    ],
)
def test_passwords_are_masked(text, shown, capsys):
    assert mask(text) == shown
    assert str(TrackingError(text)) == shown
    print_mlflow(text, make_console(width=200))
    assert shown in capsys.readouterr().out


def test_a_printed_command_can_be_typed(tmp_path, capsys):
    """Oracle: the shell's own splitting of the line."""
    path = tmp_path / "my runs; $(id)" / "mlflow.db"
    print_mlflow(f"sqlite:///{path}", make_console(width=2000))
    words = shlex.split(capsys.readouterr().out.partition("Open MLflow: ")[2])
    assert words == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{path}"]


def test_a_store_is_named_without_user_and_password():
    assert store_name("postgresql://me:x@host/db?sslmode=require") == "postgresql://host/db"
    assert store_name("http://127.0.0.1:5000/") == "http://127.0.0.1:5000"
    assert store_name("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"
