"""What every command and script shares: exit codes, the console, signals, and how an error of the input is said.

It imports nothing of the method, so that a command answers at once where it needs neither models nor stores.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from pforce.base.errors import InputError

DONE, USAGE_ERROR, SOME_FAILED, STOPPED = 0, 2, 3, 4
READER_GONE = 141
"""Exit codes: all done, wrong input, some trials failed, stopped before the end; and 128 + SIGPIPE."""


def exit_on_errors(main: Callable[[], int]) -> NoReturn:
    """Run a script's main; errors of the user's input are one line and exit code 2, before anything is started. Where
    the output is a pipe whose reader has enough (`| head`), it ends in silence with READER_GONE."""
    code: int | str | None
    try:
        try:
            code = main()
        except InputError as error:
            Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
            code = USAGE_ERROR
        except SystemExit as ended:  # of the parser, after --help
            code = ended.code
        sys.stdout.flush()  # here, not as Python ends, where an error would be a traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = READER_GONE
    sys.exit(code)


@contextmanager
def imports_kept() -> Iterator[None]:
    """Import without the garbage collector: what importing makes is there to stay, and to look through it for garbage,
    again and again while there is ever more of it, takes a quarter of torch's import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def make_console() -> Console:
    """A console; where the output is no terminal (a log, a pipe), wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def duration(seconds: float) -> str:
    """`1 h 23 min`, `4 min 10 s`, `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    before = {each: signal.signal(each, handler) for each in numbers}
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Handlers that a library sets in the block are taken back. Does nothing in a thread, which can set none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def leave_signals_to_driver() -> None:
    """Ignore what a terminal or Slurm sends to the whole group of processes: the driver says when to stop."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once: nothing interrupts the clean-up that follows."""
    for each in (*SIGNALS, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT both raise KeyboardInterrupt in the block, once; further ones are ignored until its end."""
    with _handled(_interrupt, *SIGNALS):
        yield


@dataclass
class StopRequest:
    """Whether somebody has asked this process to stop."""

    by: str | None = None
    """Name of the signal."""


@contextmanager
def stop_gently(seconds: float, worth: Callable[[], bool]) -> Iterator[StopRequest]:
    """The first SIGTERM or SIGINT in the block is noted only, so that work can end well; a second one, or so many
    seconds later the clock, raises KeyboardInterrupt. To be used within `stop_on_signals`.

    Args:
        worth: whether there is anything to be saved: else the first one raises, too.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.by is not None or not worth():
            request.by = request.by or signal.Signals(number).name
            _interrupt(number, frame)
        request.by = signal.Signals(number).name
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def late(number: int, frame: FrameType | None) -> None:
        by, request.by = request.by, request.by or "SIGALRM"
        _interrupt(signal.Signals[by or "SIGALRM"], frame)

    try:
        with _handled(note, *SIGNALS), _handled(late, signal.SIGALRM):
            yield request
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if request.by is not None:  # the caller's clean-up is not interrupted either
            for each in SIGNALS:
                signal.signal(each, signal.SIG_IGN)
