"""What goes wrong on clusters, in pods and in containers, and is told by `pforce doctor` and before a sweep.

Oracles: servers that really listen there, Ray's and Linux's own limits, requests, file systems that are really mounted.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

from pforce.executors.support import node, surroundings
from pforce.orchestration.doctor import address, cluster, folders, places
from pforce.trial.failures import ClusterError
from tests.faults.test_full_disk import unshare
from tests.support.clock import PATIENCE

SETTINGS = bytes.fromhex("000018040000000000000400400000000500400000000600004000fe0300000001000004080000000000003f0001")
"""What Ray 2.60's servers say first."""
UNKNOWN = b"\x88@\x0ccontent-type\x10application/grpc@\x0bgrpc-status\x0212\x00\x0cgrpc-message\x11Method not found!"
"""Headers with which Ray 2.60's client server answered the question."""
UNAUTHENTICATED = b"\x88@\x0bgrpc-status\x0216"
ALIVE = b"\x88@\x0ccontent-type\x10application/grpc@\x0bgrpc-status\x010"
"""A GCS's, without its data."""


class Handler(BaseHTTPRequestHandler):
    """An HTTP server such as the dashboard, or a proxy: it notes the addresses that it is asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"dashboard")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a real HTTP server."""
    Handler.asked = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def says(*words: bytes) -> Iterator[int]:
    """The port of a server that says something to whoever connects, and keeps the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with closing(connection):
                for word in words:
                    connection.sendall(word)
                connection.recv(1 << 16)
                over.wait(10)

        over = threading.Event()
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        over.set()


@pytest.mark.parametrize(
    ("form", "job_server"),
    [
        ("127.0.0.1:{}", "http://127.0.0.1:{}"),
        ("localhost:{}", "http://localhost:{}"),
        ("http://127.0.0.1:{}", "http://127.0.0.1:{}"),
        ("https://me:secret@127.0.0.1:{}", "https://me:***@127.0.0.1:{}"),
    ],
)
def test_a_dashboard_s_address_is_told_within_seconds(web, form, job_server, monkeypatch):
    """Ray itself waits for 14 minutes, in silence."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    started = time.monotonic()
    found = cluster.unreachable(form.format(web))
    assert found is not None
    assert (found.name, found.state) == ("Ray cluster", "problem")
    assert "--ray-address HOST:6379" in found.cure
    assert f"pforce submit --address {job_server.format(web)}" in found.cure
    with pytest.raises(ClusterError, match="pforce submit --address"):
        cluster.check_cluster(form.format(web))
    assert time.monotonic() - started < 8 * PATIENCE


def test_what_answers_is_told_by_what_it_says(web):
    assert address.ask("127.0.0.1", web).kind == "http"
    for words, kind in [
        ((SETTINGS, ALIVE), "cluster"),
        ((SETTINGS, UNAUTHENTICATED), "cluster"),  # before a token was shown
        ((SETTINGS, UNKNOWN), "grpc"),
        ((b"-ERR unknown command 'PRI'\r\n",), "other"),  # Redis
        ((), "silent"),
    ]:
        with says(*words) as there:
            assert address.ask("127.0.0.1", there, timeout=0.5).kind == kind, words


@pytest.mark.parametrize(
    ("words", "port", "told"),
    [
        ((SETTINGS, UNKNOWN), 20_001, "is no cluster's own port"),
        ((SETTINGS, UNAUTHENTICATED), 10_001, "the port of Ray's client"),
        ((SETTINGS, ALIVE), 10_001, None),
        ((SETTINGS, UNAUTHENTICATED), 6379, None),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), 8265, "the port of Ray's dashboard"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), 22, "something else than Ray answers at head:22 ('SSH-2.0"),
        ((), 6379, None),
    ],
)
def test_ports_that_are_known(words, port, told):
    said = b"".join(words)
    answer = address.Answer(address._kind(said, port), said)
    found = address.not_the_cluster(f"head:{port}", "head", port, answer)
    assert (found is None) == (told is None)
    assert told is None or told in found.found


def test_the_limit_of_a_socket_s_path_is_ray_s_and_linux_s(tmp_path):
    from ray._private.utils import validate_socket_filepath

    process = Path("/proc/sys/kernel/pid_max").read_text().strip()
    for length in range(1, 90):
        folder = "/" + "x" * length
        socket_path = f"{folder}/session_2026-12-31_23-59-59_999999_{process}/sockets/plasma_store"
        try:
            validate_socket_filepath(socket_path)
            fits = True
        except OSError:
            fits = False
        assert (surroundings.socket_excess(folder) == 0) == fits
    path = tmp_path / "x"
    most = surroundings.SOCKET_BYTES - len(str(path))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path) + "y" * most if most >= 0 else "\0")
    with socket.socket(socket.AF_UNIX) as bound, pytest.raises(OSError, match="too long"):
        bound.bind(str(path) + "y" * (max(most, 0) + 1))


def test_a_long_folder_for_temporary_files(tmp_path, monkeypatch):
    """Ray's sockets do not fit there first, then Python's own do not."""
    middle, long = tmp_path / "m", tmp_path / ("x" * 120)
    middle = Path("/tmp") / f"pforce-test-{os.getpid()}-{'m' * 30}"
    middle.mkdir()
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)

    def told() -> list[tuple[str, str]]:
        return [(check.state, check.found) for check in folders.temporary({"here": node.facts(str(tmp_path))})]

    try:
        monkeypatch.setenv("TMPDIR", str(middle))
        ((state, found),) = told()
        assert (state, f"TMPDIR={middle} is too long: the path of a socket of Ray" in found) == ("warning", True)
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # which comes first
        assert [state for state, _ in told()] == ["ok"]
        monkeypatch.setenv("RAY_TMPDIR", str(middle))
        assert "problem" in [state for state, _ in told()]
    finally:
        middle.rmdir()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", str(long))
    ((state, found),) = told()
    assert (state, "a socket of Python" in found) == ("problem", True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    ((state, found),) = told()
    assert (state, found.endswith("cannot be written: is not there")) == ("problem", True)


def test_a_ray_folder_that_is_too_long_is_told_before_ray_starts(tmp_path, monkeypatch):
    from pforce.executors.support.start import _private_places

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ClusterError, match="at most 107 are possible; set a short path"):
        _private_places()


@pytest.mark.parametrize(
    ("no_proxy", "in_the_way"),
    [("", True), ("localhost", True), ("head.invalid", False), (".invalid", False), ("10.0.0.0/8", True)],
)
def test_a_proxy_in_the_way_of_a_server(web, monkeypatch, no_proxy, in_the_way):
    """Oracle: whether a request by `requests`, which MLflow and the job client use, comes to the proxy."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{web}")
    monkeypatch.setenv("no_proxy", f"{no_proxy},127.0.0.1")
    with suppress(requests.ConnectionError):
        requests.get("http://head.invalid:8265/api", timeout=5)
    assert bool(Handler.asked) == in_the_way
    for uri, ray in [("http://head.invalid:5000", None), (None, "head.invalid:6379")]:
        found = places.proxies(uri, ray)
        assert (found.state == "warning") == in_the_way
        assert "secret" not in str(found)
        assert not in_the_way or found.cure.endswith(f"export no_proxy={no_proxy},127.0.0.1,head.invalid")
    monkeypatch.delenv("no_proxy")
    assert "programs of this machine at 127.0.0.1" in places.proxies(None, None).found


def test_the_place(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    assert places.place().state == "ok"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HOSTNAME", "sweep-head-x7k2p")
    assert "a pod of Kubernetes (sweep-head-x7k2p" in places.place().found
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 7_205))
    found = places.place()
    assert (found.state, "Slurm job 4711, 2 nodes (n[1-2]), 2 h 0 min left" in found.found) == ("ok", True)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 60))
    assert places.place().state == "warning"


def test_a_storage_that_is_this_machine_s_alone(tmp_path, monkeypatch):
    def state(kind: str) -> str:
        mount = folders.Mount("/", kind, "source", ("rw",))
        return folders.file_system(tmp_path, mount=mount).state

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert [state(kind) for kind in ("ext4", "nfs4", "tmpfs")] == ["ok", "ok", "warning"]
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert [state(kind) for kind in ("ext4", "lustre")] == ["warning", "ok"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "this container's own layer" in folders.file_system(
        tmp_path, mount=folders.Mount("/", "overlay", "overlay", ())
    ).found  # fmt: skip


def test_a_home_that_cannot_serve(tmp_path, monkeypatch):
    def told() -> tuple[str, str]:
        found = folders.home({"here": node.facts(str(tmp_path))})
        return found.state, found.found

    for name in folders.KEPT_ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    for home, reason in (("none", "is not there"), ("file", "is not a folder")):
        monkeypatch.setenv("HOME", str(tmp_path / home))
        assert told() == ("problem", f"{tmp_path / home} cannot be written: {reason}")
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert told()[0] == "warning", "all that is kept there lies elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert told() == ("ok", f"{tmp_path} can be written")
    at_root = {"n1": {"home": ("/", None)}, "n2": {"home": (str(tmp_path), None)}}
    assert "is / on n1" in folders.home(at_root).found


DOCTOR = "import sys; from pforce.cli import _run; sys.exit(_run(sys.argv[1:]))"
MOUNTS = """set -e
mount -t tmpfs -o ro none "$1"; mount -t tmpfs -o noexec none "$2"; mount -t tmpfs -o nr_inodes=60 none "$3"
shift 3; exec "$@"
"""


@pytest.mark.process
def test_a_place_where_all_of_it_is_wrong(tmp_path, web):
    """A home that cannot be written, programs that may not run in TMPDIR, a storage without room for files, a proxy,
    the dashboard's port: real file systems in a mount namespace, a real server."""
    home, temporary, storage = (tmp_path / name for name in ("home", "t", "runs"))
    for folder in (home, temporary, storage):
        folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    done = subprocess.run(
        [*unshare(), "sh", "-c", MOUNTS, "sh", home, temporary, storage, sys.executable, "-c", DOCTOR, "doctor",
         "--json", "--storage", storage, "--ray-address", f"127.0.0.1:{web}"],
        env={**environment, "HOME": str(home), "TMPDIR": str(temporary), "http_proxy": f"http://127.0.0.1:{web}"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    checks: dict[str, list[Any]] = {}
    for check in json.loads(done.stdout)["checks"]:
        checks.setdefault(check["name"], []).append((check["state"], check["found"]))
    assert checks["home"] == [("problem", f"{home} cannot be written: Read-only file system")]
    assert ("warning", True) in [(state, "noexec" in found) for state, found in checks["temporary files"]]
    assert [state for state, _ in checks["room for files"]] == ["problem"]
    assert [state for state, _ in checks["proxy"]] == ["warning"]
    assert "an HTTP server answers" in checks["Ray cluster"][0][1]
    assert "in memory" in checks["file system"][0][1]
    assert all(state == "ok" for state, _ in checks["file creation"] + checks["file locks"] + checks["whole files"])


COMMANDS = """import sys
from pforce.cli import _run
for words in (["runs"], ["mirror"], ["runs"], ["doctor", "--json"]):
    print("CODE", _run([*words, "--storage", sys.argv[1]]), flush=True)
"""
TABLE = """27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
50 27 0:50 / {} rw,relatime shared:9 - nfs4 nas:/export/home rw,vers=4.2
"""


@pytest.mark.process
def test_a_storage_on_a_network_has_its_database_on_a_local_disk(tmp_path):
    """The commands read the table of mounts of a machine with NFS, which lies above /proc's own."""
    table, storage, cache = tmp_path / "mountinfo", tmp_path / "nas" / "runs", Path(os.environ["PFORCE_CACHE"])
    storage.mkdir(parents=True)
    table.write_text(TABLE.format(storage.parent))
    done = subprocess.run(
        [*unshare(), "sh", "-c", 'mount --bind "$1" /proc/$$/mountinfo; shift; exec "$@"', "sh", table,
         sys.executable, "-c", COMMANDS, storage],
        env={**os.environ, "COLUMNS": "2000"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    first, shown, second, report, _ = done.stdout.split("CODE ")
    (database,) = (cache / "databases").iterdir()
    note = f"MLflow's database is {database}, on this machine, as {storage} lies on nfs4 (nas:/export/home)"
    for said in (first, second, report):
        assert note in " ".join(said.split()), done.stdout + done.stderr
        assert f"pforce mirror --storage {storage}" in " ".join(said.split())
    assert f"sqlite:///{database}: 0 runs made" in shown
    assert not (storage / "mlflow.db").exists()
    checks = {check["name"]: check for check in json.loads(report.partition("\n")[2])["checks"]}
    assert checks["file system"]["found"] == f"{storage} lies on nfs4 (nas:/export/home), which machines share"
    assert checks["MLflow store"]["state"] == "ok"
