"""Leases. Oracles: what real processes that contend do, stopped, killed and continued; at most one holds a key."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pforce.records import lease
from pforce.records.lease import Contender, Holder, LeaseError, LeaseLost, leased, shared
from pforce.storage import Storage
from tests.support.buckets import KEYS
from tests.support.ports import free_port
from tests.support.starts import Start

pytestmark = pytest.mark.process

QUICK = "from pforce.records import lease; lease.PATIENCE, lease.BEAT_SECONDS, lease.LOOK_SECONDS = 1.0, 0.1, 0.05\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("PATIENCE", 1.0), ("BEAT_SECONDS", 0.1), ("LOOK_SECONDS", 0.05)):
        monkeypatch.setattr(lease, name, value)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path, monkeypatch) -> Storage:
    if request.param == "folder":
        return Storage.open(tmp_path / "runs")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))
    server = request.getfixturevalue("server")
    return Storage.open(server.uri(f"bucket/{tmp_path.name}"))


def process(storage: Storage, code: str) -> Start:
    begin = "import sys, time\nfrom pathlib import Path\nfrom pforce.storage import Storage\n"
    text = f"{QUICK}{begin}place = Storage.open(sys.argv[1])\n{code}"
    return Start(["-c", text, storage.uri])


HOLD = (
    "held = lease.Contender(place, 'a/key', 'holding').acquire(lease.patient)\n"
    "print('held', held.generation, flush=True)\n"
    "time.sleep(30)\n"
)


def test_one_at_a_time(place):
    with leased(place, "a/key", "working") as mine:
        other = Contender(place, "a/key", "waiting")
        assert other.try_acquire() is None
        assert other.holder is not None
        assert other.holder.process == os.getpid()
        assert "working" in str(other.holder)
        assert Contender(place, "another", "working").try_acquire() is not None
        mine.check()
    again = other.try_acquire()
    assert again is not None
    again.check()
    with pytest.raises(LeaseLost, match="another process has taken this over"):
        mine.check()
    mine.release()
    again.check()
    again.release()
    assert not place.names("leases/a/key")


def test_a_contender_waits_as_long_as_there_is_a_beat(place):
    with leased(place, "key", "working"):
        other = Contender(place, "key", "waiting")
        end = time.monotonic() + 2.5 * lease.PATIENCE
        while time.monotonic() < end:
            assert other.try_acquire() is None
            time.sleep(0.05)


def test_a_killed_process_of_this_machine_is_not_waited_for(place):
    holder = process(place, HOLD)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held 1\n"
    other = Contender(place, "a/key", "waiting", clock=lambda: 0.0)  # no time passes: patience is not the reason
    assert other.try_acquire() is None
    holder.kill()
    holder.wait()
    mine = other.try_acquire()
    assert mine is not None
    assert mine.generation == 2
    mine.release()


def test_a_stopped_holder_is_taken_over_and_publishes_nothing(place):
    """SIGSTOP for longer than the patience, then SIGCONT: its own look tells it, and its beat and its end change
    nothing."""
    code = (
        "held = lease.Contender(place, 'key', 'holding').acquire(lease.patient)\n"
        "print('held', flush=True)\n"
        "while True:\n"
        "    time.sleep(0.05)\n"
        "    try:\n"
        "        held.check()\n"
        "    except lease.LeaseLost as error:\n"
        "        time.sleep(0.5)\n"
        "        held.release()\n"
        "        print('lost', flush=True)\n"
        "        break\n"
    )
    holder = process(place, code)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    mine = Contender(place, "key", "waiting").acquire(lease.patient)
    assert time.monotonic() - stopped >= lease.PATIENCE
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.stdout.readline() == "lost\n"
    assert holder.wait() == 0
    mine.check()
    mine.release()


def test_clocks_of_other_machines_are_not_compared(place, monkeypatch):
    """An hour ahead, an hour behind: neither is taken over while it beats."""
    for off in (3600, -3600):
        now = time.time
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda off=off, now=now: now() + off)
            held = Contender(place, "key", "working").try_acquire()
        assert held is not None
        other = Contender(place, "key", "waiting")
        for _ in range(25):
            assert other.try_acquire() is None
            time.sleep(0.05)
        held.release()


def test_many_processes_do_each_piece_once(place, tmp_path):
    """Four processes are given the same twelve pieces; each piece is done by one, and all of them end."""
    done = tmp_path / "done"
    done.mkdir()
    code = (
        f"done = Path({str(done)!r})\n"
        "print('ready', flush=True)\n"
        "while not (done / 'go').exists(): time.sleep(0.01)\n"
        "for item in lease.shared(place, range(12), key=lambda i: f'piece/{i}', doing='work',\n"
        "                         done=lambda i: (done / str(i)).exists()):\n"
        "    time.sleep(0.05)\n"
        "    print(item, flush=True)\n"
        "    (done / str(item)).touch()\n"
    )
    several = [process(place, code) for _ in range(4)]
    for each in several:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    (done / "go").touch()
    found = [each.communicate(timeout=60)[0].split() for each in several]
    assert [each.returncode for each in several] == [0] * 4
    assert sorted(int(item) for items in found for item in items) == list(range(12))
    assert sum(bool(items) for items in found) >= 2


def test_a_link_that_is_made_and_answers_with_an_error(tmp_path, monkeypatch):
    place, link = Storage.open(tmp_path), os.link

    def made(source, target):
        link(source, target)
        raise OSError(errno.EIO, "the answer was lost")

    monkeypatch.setattr(os, "link", made)
    with leased(place, "key", "working") as mine:
        assert Contender(place, "key", "waiting").try_acquire() is None
        mine.check()
    monkeypatch.setattr(os, "link", lambda source, target: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    with leased(place, "key", "working") as mine:
        assert Contender(place, "key", "waiting").try_acquire() is None
        mine.check()


class _Losing(BaseHTTPRequestHandler):
    """Hands requests on to a server, and loses the answers to conditional writes."""

    target = 0
    lost: list[str] = []  # noqa: RUF012

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = HTTPConnection("127.0.0.1", self.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        if "If-None-Match" in self.headers and len(self.lost) < 1:
            self.lost.append(self.path)
            self.connection.close()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass  # noqa: N815

    def log_message(self, *values: object) -> None:
        """Says nothing."""


def test_a_bucket_whose_answer_to_a_conditional_write_is_lost(server, tmp_path, monkeypatch):
    """The write was made: it is the caller's own, and nobody else gets the lease, nor waits without end."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))
    handler = type("Handler", (_Losing,), {"target": server.port, "lost": []})
    proxy = ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    uri = f"s3://bucket/lost?endpoint_override=127.0.0.1:{proxy.server_address[1]}&scheme=http"
    mine = Contender(Storage.open(uri), "key", "working").try_acquire()
    assert handler.lost, "no answer was lost: the test would show nothing"
    assert mine is not None
    direct = Storage.open(server.uri("bucket/lost"))
    assert Contender(direct, "key", "waiting").try_acquire() is None
    mine.check()
    mine.release()
    assert Contender(direct, "key", "waiting").try_acquire() is not None
    proxy.shutdown()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"format": 1}', b"\0" * 100])
def test_a_lease_that_cannot_be_understood_is_waited_for_and_taken_over(tmp_path, content):
    place = Storage.open(tmp_path)
    place.put("leases/key/3.json", content)
    other = Contender(place, "key", "waiting")
    assert other.try_acquire() is None
    mine = other.acquire(lease.patient)
    assert mine.generation == 4
    mine.release()


def test_a_newer_lease_is_not_guessed_at(tmp_path):
    place = Storage.open(tmp_path)
    place.put("leases/key/1.json", json.dumps({"format": 2}).encode())
    with pytest.raises(LeaseError, match="a lease of format 2, this version reads 1"):
        Contender(place, "key", "waiting").try_acquire()


def test_leases_that_cannot_be_written_are_said(tmp_path):
    (tmp_path / "leases").write_text("no folder")
    with pytest.raises(LeaseError, match=r"no lease can be written .* check the permissions of .*leases"):
        Contender(Storage.open(tmp_path), "key", "waiting").try_acquire()


def test_a_process_is_known_by_its_start(tmp_path):
    """A later process of the same number, or one of another machine, is not taken for it."""
    here = Holder.here("working")
    assert not here.dead
    gone = process(Storage.open(tmp_path), "print(lease._born(__import__('os').getpid()), flush=True)")
    born = gone.communicate()[0].strip()
    values = {name: getattr(here, name) for name in ("nonce", "user", "host", "since", "doing")}
    assert Holder(**values, process=gone.pid, born=born).dead
    assert Holder(**values, process=os.getpid(), born=born).dead
    assert not Holder(**{**values, "host": "elsewhere"}, process=gone.pid, born=born).dead
    assert not Holder(**values, process=gone.pid, born="another-boot/pid:[1] 12").dead
    assert not Holder(**values, process=gone.pid, born="").dead


def test_nothing_is_left_behind(tmp_path):
    place = Storage.open(tmp_path / "runs")
    Path(tmp_path / "runs" / "other").mkdir(parents=True)
    assert list(shared(place, ["a", "b"], key=str, done=lambda item: False, doing="work")) == ["a", "b"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
