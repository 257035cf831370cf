"""Python commands as processes that begin at once: forked off a server that has imported pforce and MLflow.

They are processes of their own, with their own environment, folder, output, signals and exit code; only the import is
shared. What a fresh interpreter does is the oracle of some tests, which call `subprocess` instead.
"""

from __future__ import annotations

import atexit
import io
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Self

from pforce.executors.processes import STARTS

ROOT = Path(__file__).resolve().parents[2]
PFORCE = "pforce"
"""First word of a command line of pforce's; others are `-m MODULE`, `-c CODE`, or the path of a script."""


def _become(
    words: Sequence[str], cwd: str, environment: Mapping[str, str], out: Connection | str, err: str | None
) -> None:
    """Carry out a command, in the process that was forked for it."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # which the server ignores
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for place, number in ((out, 1), (err if err is not None else 1, 2)):
        if isinstance(place, Connection):
            os.dup2(place.fileno(), number)
        elif isinstance(place, str):
            file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
        else:
            os.dup2(place, number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", write_through=True)
    if isinstance(out, Connection):
        out.close()
    try:
        if words[0] == PFORCE:
            sys.argv = [*words]
            from pforce.cli import main

            main()
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<a test's code>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = [*words[1:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [*words]
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out: Ray ends its cluster there


class Start:
    """A command that runs, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self, words: Sequence[str], *, log: Path | None = None, cwd: Path = ROOT, env: Mapping[str, str] | None = None,
        err: Path | None = None,
    ) -> None:  # fmt: skip
        """Begin.

        Args:
            log: file that its output is appended to; without one it can be read from `stdout`.
            err: file of its errors; without one they go where its output goes.
        """
        environment = dict(os.environ if env is None else env)
        self.stdout: IO[str] | None = None
        if log is None:
            ours, theirs = STARTS.Pipe(duplex=False)
            self.stdout = os.fdopen(os.dup(ours.fileno()), encoding="utf-8")
            ours.close()
        else:
            log.touch()
        out = str(log) if log is not None else theirs
        arguments = (list(map(str, words)), str(cwd), environment, out, None if err is None else str(err))
        self._process = STARTS.Process(target=_become, args=arguments)
        self._process.start()
        if log is None:
            theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a command of a test", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that it still writes, and its end."""
        assert self.stdout is not None
        text = self.stdout.read()
        self.wait(timeout)
        return text, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of: object) -> None:
        self.wait()

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def completed(
    *words: str | Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    alone: bool = False,
    timeout: float = 400,
) -> subprocess.CompletedProcess[str]:
    """A command from its start to its end, output and errors captured.

    Args:
        env: what its environment has besides; with `alone`, all of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        started = Start(
            [str(word) for word in words],
            log=out,
            err=err,
            cwd=cwd,
            env={**({} if alone else os.environ), **(env or {})},
        )
        try:
            code = started.wait(timeout)
        finally:
            started.kill()
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err)]
    return subprocess.CompletedProcess([str(word) for word in words], code, *texts)


def pforce(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """`completed`, of a command of pforce's, on a wide terminal."""
    return completed(PFORCE, *words, **{"env": {"COLUMNS": "160"}, **options})  # type: ignore[arg-type]
