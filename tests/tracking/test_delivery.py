"""Records on their way to real stores. Oracle: MLflow's client, and the database's own rows before and after."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from pforce import results
from pforce.tracking import Delivery, RunSpec, Tags, Tracker, TrackingError, default_uri, deliver_leftovers, runs_frame
from pforce.tracking.courier import Courier
from pforce.tracking.spool import Spool, SpoolInUse, leftovers, open_spool
from tests.clock import PATIENCE

pytestmark = pytest.mark.timeout(600)


def spec(fingerprint: str) -> RunSpec:
    return RunSpec(f"cell {fingerprint}", fingerprint, {"timesteps.m": 0.5}, {"device": "cpu"})


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    return Tracker(default_uri(tmp_path), artifacts=tmp_path / "artifacts")


def rows(tmp_path: Path) -> list[str]:
    """Everything in the database."""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        return sorted(connection.iterdump())


def history(tracker: Tracker, fingerprint: str) -> list[tuple[int, float]]:
    """(step, value) of the loss in the order in which they were made."""
    (run,) = (r for r in runs_frame(tracker).to_dict("records") if r["fingerprint"] == fingerprint)
    points = tracker.client.get_metric_history(run["run_id"], "train/loss")
    return [(point.step, point.value) for point in sorted(points, key=lambda point: (point.timestamp, point.step))]


def test_records_arrive_in_order_with_their_own_times(tracker, tmp_path):
    (tmp_path / "result.json").write_text("{}")
    said: list[str] = []
    before = int(time.time() * 1000)
    with Delivery(tracker, tmp_path / "spool", "id", said.append) as delivery:
        delivery.open_sweep("grid", {"version.pforce": "1"})
        for name in "ab":
            delivery.open_trial(spec(name))
        for step in range(100):
            for name in "ab":
                delivery.log(name, {"train/loss": step / 7, "train/nan": float("nan")}, step=step)
        delivery.tag("a", {"warning": "x" * 9000})
        delivery.artifact("a", tmp_path / "result.json")
        delivery.close("a", "FINISHED")
        delivery.close("b", "FAILED")
        delivery.close_sweep("FAILED")
        assert delivery.finish() == 0
    assert said == []
    assert list((tmp_path / "spool").iterdir()) == []
    for name in "ab":
        assert history(tracker, name) == [(step, step / 7) for step in range(100)]
    frame = results.runs(tracker.uri).set_index("fingerprint")
    assert frame["status"].to_dict() == {"a": "FINISHED", "b": "FAILED"}
    run = tracker.client.get_run(frame["run_id"]["a"])
    assert run.data.params == {"timesteps.m": "0.5"}
    assert run.data.tags["device"] == "cpu"
    assert [file.path for file in tracker.client.list_artifacts(run.info.run_id)] == ["result.json"]
    assert before <= run.info.start_time <= run.info.end_time
    assert tracker.client.get_run(frame["parent"]["a"]).info.status == "FAILED"


def test_a_whole_file_delivered_again_twice_changes_nothing(tracker, tmp_path):
    """One trial killed, taken up again and finished, one failed; as if no note of the delivery had been kept."""
    (tmp_path / "result.json").write_text("{}")
    with Delivery(tracker, tmp_path / "spool", "id", print) as delivery:
        delivery.open_sweep("grid", {})
        for name in "ab":
            delivery.open_trial(spec(name))
            for step in range(20):
                delivery.log(name, {"train/loss": step / 7, "train/mse": 0.1}, step=step)
        delivery.tag("a", {Tags.REASON: "stopped"})
        delivery.close("a", "KILLED")
        delivery.open_trial(spec("a"))
        delivery.log("a", {"train/loss": 0.5}, step=20)
        delivery.artifact("a", tmp_path / "result.json")
        delivery.close("a", "FINISHED")
        delivery.tag("b", {Tags.REASON: "diverged"})
        delivery.close("b", "FAILED")
        delivery.close_sweep("FAILED")
        assert delivery.flush() == 0
        shutil.copy(delivery.spool.path, tmp_path / "again.jsonl")
    first = rows(tmp_path)
    assert len(history(tracker, "a")) == 21
    for _ in range(2):
        spool = Spool(tmp_path / "again.jsonl", "")
        courier = Courier(tracker, spool, print)
        assert courier.offset == spool.start
        while courier.deliver():
            continue
        assert courier.delivered == 52
        assert courier.refused == 0
        spool._position.unlink()
        spool.close()
        assert rows(tmp_path) == first


DRIVER = """
import sys
from pathlib import Path
from pforce.tracking import *
folder = Path(sys.argv[1])
tracker = Tracker(default_uri(folder), artifacts=folder / "artifacts")
spec = lambda name: RunSpec(name, name, {"p": "1"}, {})
with Delivery(tracker, folder / "spool", "id", print) as delivery:
    delivery.open_sweep("grid", {})
    print("open", flush=True)
    for name in map(str, range(60)):
        delivery.open_trial(spec(name))
        for step in range(40):
            delivery.log(name, {"train/loss": step / 7}, step=step)
        delivery.close(name, "FINISHED")
    delivery.close_sweep("FINISHED")
    print("written", flush=True)
    delivery.flush()
    input()
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_a_driver_killed_while_it_delivers(tracker, tmp_path, seed):
    """SIGKILL at a random moment of the delivery: what the file holds arrives with the next call, each point once."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    assert process.stdout.readline() == "written\n"
    most = random.Random(seed).randrange(1, 30)
    while len(runs_frame(tracker)) < most:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    there = runs_frame(tracker)
    assert len(there) < 60, "the delivery was over before the kill: nothing was tested"
    said: list[str] = []
    deliver_leftovers(tracker, tmp_path / "spool", said.append)
    assert "that an earlier call left" in said[0]
    assert list((tmp_path / "spool").iterdir()) == []
    frame = runs_frame(tracker)
    assert sorted(map(int, frame["fingerprint"])) == list(range(60))
    assert set(frame["status"]) == {"FINISHED"}
    for name in map(str, range(60)):
        assert history(tracker, name) == [(step, step / 7) for step in range(40)]


def test_half_a_line_is_ignored_and_the_file_goes_on(tmp_path):
    spool = Spool(tmp_path / "a.jsonl", "store")
    spool.append({"n": 1})
    spool.close()
    with spool.path.open("a") as file:
        file.write('{"n": 2, "trunc')
    again = Spool(spool.path, "store")
    assert [entry.record for entry in again.read(again.start)] == [{"n": 1}]
    assert again.count(again.start) == 1
    again.append({"n": 3})
    assert [entry.record for entry in again.read(again.start)] == [{"n": 1}, {}, {"n": 3}]
    assert again.count(again.start) == 2
    assert [entry.record for entry in again.read(again.start, most=1)] == [{"n": 1}], "a long line is read whole"
    again.close()


def test_a_position_of_another_file_of_that_name_does_not_count(tmp_path):
    spool = Spool(tmp_path / "a.jsonl", "store")
    spool.mark({"offset": 99})
    assert spool.position()["offset"] == 99
    spool.path.unlink()  # as a kill within `remove` leaves it
    spool.close()
    assert Spool(tmp_path / "a.jsonl", "store").position() == {}


def test_two_drivers_and_two_stores_do_not_share_a_file(tmp_path):
    first = open_spool(tmp_path, "id", "store")
    with pytest.raises(SpoolInUse):
        Spool(first.path, "store")
    second = open_spool(tmp_path, "id", "store")
    assert (first.path.name, second.path.name) == ("id.jsonl", "id-2.jsonl")
    first.close()
    other = open_spool(tmp_path, "id", "another")
    assert other.path.name == "id-3.jsonl"
    assert [spool.path.name for spool in leftovers(tmp_path, "store")] == ["id.jsonl"], "those in use are left alone"


def test_records_for_another_store_wait_for_it(tracker, tmp_path):
    spool = open_spool(tmp_path / "spool", "id", "http://elsewhere:5000")
    spool.append({"op": "close", "key": "", "time": 0, "status": "FINISHED"})
    spool.close()
    said: list[str] = []
    deliver_leftovers(tracker, tmp_path / "spool", said.append)
    assert said == [
        f"1 record(s) for the tracking store http://elsewhere:5000 wait in {spool.path}; give it as --tracking-uri to "
        "deliver them"
    ]
    assert spool.path.exists()


def test_a_refused_record_is_set_aside_and_holds_up_nothing(tracker, tmp_path):
    """A name that MLflow forbids between two good points, a file that is gone, a run that was deleted."""
    said: list[str] = []
    with Delivery(tracker, tmp_path / "spool", "id", said.append) as delivery:
        delivery.open_sweep("grid", {})
        for name in "ab":
            delivery.open_trial(spec(name))
        assert delivery.flush() == 0
        gone = results.runs(tracker.uri).set_index("fingerprint")["run_id"]["b"]
        tracker.client.delete_run(gone)
        for step, name in enumerate(("train/loss", "not: allowed!", "train/loss")):
            delivery.log("a", {name: float(step)}, step=step)
        delivery.log("b", {"train/loss": 1.0}, step=1)
        delivery.artifact("a", tmp_path / "missing.png")
        delivery.close("a", "FINISHED")
        assert delivery.finish() == 0
    assert history(tracker, "a") == [(0, 0.0), (2, 2.0)]
    assert results.runs(tracker.uri)["status"].tolist() == ["FINISHED"]
    aside = [json.loads(line) for line in (tmp_path / "spool" / "id.refused").read_text().splitlines()]
    assert sorted(one["record"]["op"] for one in aside) == ["artifact", "metrics", "metrics"]
    assert any("not: allowed!" in one["reason"] for one in aside)
    assert len(said) == 1
    assert "id.refused" in said[0]


def test_a_refused_parameter_does_not_lose_its_run(tracker, tmp_path):
    with Delivery(tracker, tmp_path / "spool", "id", print) as delivery:
        delivery.open_sweep("grid", {})
        delivery.open_trial(RunSpec("cell", "a", {"not: allowed!": "1"}, {}))
        delivery.log("a", {"train/loss": 1.0}, step=1)
        delivery.close("a", "FINISHED")
        assert delivery.finish() == 0
    assert history(tracker, "a") == [(1, 1.0)]
    assert "not: allowed!" in (tmp_path / "spool" / "id.refused").read_text()


def test_a_sweep_that_cannot_be_opened_is_an_error_before_any_training(tracker, tmp_path):
    tracker.client.delete_experiment(tracker.open_sweep("grid", "id", {}).experiment_id)
    said: list[str] = []
    with (
        pytest.raises(TrackingError, match=r"was deleted .* choose another --name"),
        Delivery(tracker, tmp_path / "spool", "id", said.append) as delivery,
    ):
        delivery.open_sweep("grid", {})


def test_a_wrong_flush_time_is_refused(tracker, tmp_path, monkeypatch):
    monkeypatch.setenv("PFORCE_FLUSH_SECONDS", "soon")
    with pytest.raises(TrackingError, match="PFORCE_FLUSH_SECONDS = soon: must be a number of seconds"):
        Delivery(tracker, tmp_path, "id", print)


# --- a real server, and what networks do to it ---------------------------------------------------------------------


class Wire:
    """A TCP port before a server that passes requests on, and may lose the answer to a run's creation.

    Args:
        late: seconds after which the request whose client was hung up on reaches the server; None: at once.
        own: its port; 0 for a free one. lost: 1 to lose nothing.
    """

    def __init__(self, port: int, late: float | None = None, *, own: int = 0, lost: int = 0) -> None:
        wire, self.lost, self.threads = self, lost, list[threading.Thread]()

        class Handler(BaseHTTPRequestHandler):
            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))

                def ask() -> tuple[int, bytes]:
                    server = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                    server.request(self.command, self.path, body, dict(self.headers))
                    answer = server.getresponse()
                    return answer.status, answer.read()

                if self.path.endswith("/runs/create") and b'"trial"' in body and not wire.lost:
                    wire.lost += 1
                    self.close_connection = True
                    if late is None:
                        ask()
                    else:
                        wire.threads.append(threading.Timer(late, ask))
                        wire.threads[-1].start()
                    return
                status, content = ask()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", own), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.mark.parametrize("late", [None, 2.0])
def test_a_creation_whose_answer_is_lost_makes_one_run(server, tmp_path, late):
    """The server made the run and its answer never came; or it makes it after another one was made."""
    wire = Wire(server.port, late)
    name = f"lost {late}"
    tracker = Tracker(wire.uri, artifacts=tmp_path)
    said: list[str] = []
    with Delivery(tracker, tmp_path / "spool", "id", said.append) as delivery:
        delivery.open_sweep(name, {})
        delivery.open_trial(spec("a"))
        delivery.log("a", {"train/loss": 1.0}, step=1)
        assert delivery.flush() == 0
        for thread in wire.threads:
            thread.join()
        assert len(results.runs(server.uri, name)) == (1 if late is None else 2)
        delivery.close("a", "FINISHED")
        delivery.close_sweep("FINISHED")
        assert delivery.finish() == 0
    assert wire.lost == 1
    assert ["is away since" in said[0], "is back after" in said[1]] == [True, True]
    assert len(said) == 2
    frame = results.runs(server.uri, name)
    assert frame["status"].tolist() == ["FINISHED"]
    client = mlflow.MlflowClient(server.uri)
    assert len(client.get_metric_history(frame["run_id"][0], "train/loss")) == 1
    wire.http.shutdown()


def test_a_server_that_hangs_holds_up_nobody_and_is_noticed(server, tmp_path):
    """SIGSTOP: it accepts and never answers. Noticed in 15 s; the driver's calls stay at microseconds."""
    tracker = Tracker(server.uri, artifacts=tmp_path)
    said: list[str] = []
    with Delivery(tracker, tmp_path / "spool", "id", said.append) as delivery:
        delivery.open_sweep("hangs", {})
        delivery.open_trial(spec("a"))
        assert delivery.flush() == 0
        server.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            for step in range(2000):
                delivery.log("a", {"train/loss": step / 7}, step=step)
            assert time.monotonic() - started < 2 * PATIENCE
            while not said:
                assert time.monotonic() - started < 15 * PATIENCE
                time.sleep(0.1)
            assert "is away since" in said[0]
            assert "it does not answer in time" in said[0]
            assert str(delivery.spool.path) in said[0]
            assert delivery.waiting == 2000
            assert delivery.flush(0.5) == 2000
        finally:
            server.signal(signal.SIGCONT)
        delivery.close("a", "FINISHED")
        assert delivery.finish() == 0
    assert [text.partition(" after")[0].rpartition(" is ")[2] for text in said[1:]] == ["back"]
    frame = results.runs(server.uri, "hangs")
    points = mlflow.MlflowClient(server.uri).get_metric_history(frame["run_id"][0], "train/loss")
    assert sorted((point.step, point.value) for point in points) == [(step, step / 7) for step in range(2000)]


def test_what_is_left_at_the_end_is_said_and_delivered_by_the_next_call(server, tmp_path, monkeypatch):
    """The server goes for good while records wait: the end takes no longer than PFORCE_FLUSH_SECONDS."""
    monkeypatch.setenv("PFORCE_FLUSH_SECONDS", "1")
    wire = Wire(server.port, lost=1)
    tracker = Tracker(wire.uri, artifacts=tmp_path)
    said: list[str] = []
    with Delivery(tracker, tmp_path / "spool", "id", said.append) as delivery:
        delivery.open_sweep("left", {})
        wire.http.shutdown()
        wire.http.server_close()
        delivery.open_trial(spec("a"))
        delivery.log("a", {"train/loss": 1.0}, step=1)
        delivery.close("a", "FINISHED")
        started = time.monotonic()
        assert delivery.finish() == 3
        assert time.monotonic() - started < 4 * PATIENCE
    assert said[-1].startswith("3 record(s) are not in")
    assert "the next call of the same command delivers them" in said[-1]
    with pytest.raises(TrackingError, match="cannot be written: nothing listens there"):
        deliver_leftovers(tracker, tmp_path / "spool", said.append)
    again = Wire(server.port, own=int(wire.uri.rpartition(":")[2]), lost=1)
    deliver_leftovers(tracker, tmp_path / "spool", said.append)
    assert results.runs(server.uri, "left")["status"].tolist() == ["FINISHED"]
    assert list((tmp_path / "spool").iterdir()) == []
    again.http.shutdown()
