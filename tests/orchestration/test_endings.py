"""How a sweep ends, and who is told: `--fail-fast`, `--notify`, and what a dry run says beforehand.

Oracle: a real HTTP server of the test's own, exit codes, and which cells were begun.
"""

from __future__ import annotations

import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, make_console
from pforce.base.errors import FieldError
from pforce.orchestration import notify as notices
from pforce.orchestration.axes import Axis
from pforce.orchestration.dry_run import print_dry_run
from pforce.orchestration.notify import notify
from pforce.orchestration.options import Options
from pforce.orchestration.plan import this_command
from pforce.orchestration.script import run_sweep
from tests.orchestration.conftest import make_plan, small_sweep
from tests.support.ports import free_port

pytestmark = pytest.mark.process

DIVERGING = Axis("optimizer.learning_rate", (1e20, 1e21, 0.002))


class Address:
    """A server that keeps what it is sent, and answers with the given codes, the last one for ever."""

    def __init__(self, codes: list[int]) -> None:
        self.got: list[dict[str, object]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
                self.end_headers()

            def log_message(self, *of: object) -> None:
                """Say nothing."""

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/SECRET"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def address() -> Iterator[type[Address]]:
    made: list[Address] = []

    def make(*codes: int) -> Address:
        made.append(Address(list(codes)))
        return made[-1]

    yield make  # type: ignore[misc]
    for each in made:
        each.server.shutdown()
        each.server.server_close()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(notices, "ANSWER_SECONDS", 0.3)


def test_after_so_many_failures_nothing_is_begun_and_who_asked_is_told(tmp_path, address, capsys):
    """Two of three cells diverge. With the limit the third is not begun; the same command without it begins it."""
    told = address(200)
    options = Options(storage=str(tmp_path), cpus_per_trial=1, fail_fast=1, notify=told.url)
    assert run_sweep(small_sweep(DIVERGING), options, executor="local") == SOME_FAILED
    assert "1 trial failed (--fail-fast 1): 2 trials not begun" in " ".join(capsys.readouterr().out.split())
    frame = results.runs(tmp_path)
    assert list(frame["status"]) == ["FAILED"]
    (message,) = told.got
    assert (message["sweep"], message["state"], message["exit_code"]) == ("small", "failed", SOME_FAILED)
    assert (message["cells"], message["finished"]) == (3, 0)
    assert list(message["failed"].values()) == ["diverged"]  # type: ignore[attr-defined]
    assert "small failed: 0 of 3 cells" in str(message["text"])
    options = Options(storage=str(tmp_path), cpus_per_trial=1)
    assert run_sweep(small_sweep(Axis(DIVERGING.path, (0.002,))), options, executor="local") == DONE


def test_an_error_before_anything_starts_is_told_too(tmp_path, address):
    told = address(200)
    (tmp_path / "file").write_text("")
    options = Options(storage=str(tmp_path / "file"), notify=told.url)
    with pytest.raises(Exception, match="cannot be written"):
        run_sweep(small_sweep(), options, executor="local")
    assert (told.got[0]["state"], told.got[0]["exit_code"]) == ("failed", None)


def test_an_address_that_fails_is_tried_three_times(address):
    """And never more where it refuses. Its path, a secret, is not repeated."""
    late = address(500, 503, 200)
    assert notify(late.url, {"a": 1}) is None
    assert late.got == [{"a": 1}] * 3
    refusing = address(404)
    assert str(notify(refusing.url, {})).endswith("was not notified: it answers 404")
    assert len(refusing.got) == 1
    for url in (f"http://127.0.0.1:{free_port()}/SECRET", refusing.url):
        assert "SECRET" not in str(notify(url, {}))


def test_an_address_that_hangs_holds_nobody_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        problem = notify(f"http://127.0.0.1:{silent.getsockname()[1]}/x", {"a": 1})
    assert "timed out" in str(problem)


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "hooks.example.org/SECRET", "ftp://h/x", "http://", "https://bot:SECRET@h/x",
    "https://h/SECRET x", "http://[::1/SECRET", "http://h:99999999/SECRET",
])  # fmt: skip
def test_what_is_no_address_is_refused_before_anything_starts(url):
    with pytest.raises(FieldError, match=r"notify = .*: must be an http:// or https:// address") as error:
        Options(notify=url)
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("words", [["--notify", "https://h.org/SECRET"], ["--notify=https://h.org/SECRET"]])
def test_the_command_that_is_kept_holds_no_address(monkeypatch, words):
    monkeypatch.setattr("sys.argv", ["sweeps/ltg_grid.py", *words, "--m", "0.7"])
    assert this_command().replace("'", "") in (
        "ltg_grid.py --notify https://h.org/… --m 0.7", "ltg_grid.py --notify=https://h.org/… --m 0.7",
    )  # fmt: skip


def test_a_dry_run_says_what_is_there_and_what_it_takes(tmp_path):
    plan = make_plan(small_sweep(Axis("timesteps.sigma", (0.1, 0.2))), tmp_path, cpus_per_trial=1)
    out = io.StringIO()
    print_dry_run(plan, make_console(file=out, width=300))
    text = out.getvalue()
    assert text.count("to run") == 2
    assert "until " in text
    assert "core-hours" in text
    assert not list(tmp_path.glob("trainings/*"))
