"""Exit codes, the console, signals and the report of input errors, shared by all commands and scripts.

It imports nothing of the method, so that a command that needs neither models nor stores starts at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from pforce.base.errors import InputError
from pforce.base.foreign import printable
from pforce.base.secrets import mask

DONE, USAGE_ERROR, SOME_FAILED, STOPPED = 0, 2, 3, 4
READER_GONE = 141
"""Exit codes: all done, wrong input, some trials failed, stopped before the end; and 128 + SIGPIPE."""


def exit_on_errors(main: Callable[[], int]) -> NoReturn:
    """Run a script's main function and exit with its code. An error of the user's input is printed as one line and
    gives exit code 2, Ctrl-C gives STOPPED. Where the output is a pipe whose reader has closed it (`| head`), exit
    silently with READER_GONE."""
    code: int | str | None
    _IS_COMMAND.set()
    if signal.getsignal(NOTICE) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(NOTICE, signal.SIG_IGN)  # there is nothing to save yet, and it would end this process
    try:
        try:
            code = main()
        except InputError as error:
            make_console(stderr=True).print(Text.assemble(("error: ", "bold red"), mask(str(error))), soft_wrap=True)
            code = USAGE_ERROR
        except SystemExit as ended:  # raised by the parser, after --help
            code = ended.code
        except KeyboardInterrupt as stopped:  # Python's own has no arguments, ours the signal's name
            make_console(stderr=True).print(f"Stopped by {str(stopped) or 'Ctrl-C'}.")
            code = STOPPED
        sys.stdout.flush()  # here, not when Python exits, where an error would print a traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = READER_GONE
    sys.exit(code)


@contextmanager
def imports_kept() -> Iterator[None]:
    """Import with the garbage collector off: imported objects stay anyway, and scanning them repeatedly for garbage
    takes a quarter of torch's import time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


class _PlainConsole(Console):
    """A console on which a text is a text, whoever wrote it: no markup, no codes of emoji, and a visible sign for each
    character that a terminal would obey."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of text and style, as rich makes them, with printable texts."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console; wide enough for a table where the output is not a terminal (a log, a pipe). Where CI is set, as on
    machines that build and test, a terminal is only a log: it is not interactive, and nothing on it is animated.

    Args:
        options: further options of rich's Console, such as its width.
    """
    console = _PlainConsole(stderr=stderr, force_interactive=False if os.environ.get("CI") else None, **options)
    return console if console.is_terminal else _PlainConsole(stderr=stderr, **{"width": 200, **options})


@contextmanager
def under_way(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Show a moving sign beside a text during the block, on an interactive terminal only; yield a function that changes
    the text."""
    if not console.is_interactive:
        yield lambda text: None
        return
    with console.status(text) as status:
        yield status.update


def duration(seconds: float) -> str:
    """A duration in words: `1 h 23 min`, `4 min 10 s`, `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def stops() -> tuple[signal.Signals, ...]:
    """The signals that end a command: SIGHUP (the terminal was closed) only where it is not ignored, as by nohup."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if hangs_up else ()))


NOTICE = signal.SIGUSR1
"""Signal by which a scheduler says that this machine will soon be taken (Slurm: `--signal=B:USR1@300`)."""
_IS_COMMAND = threading.Event()
"""Set where this process ends with its command."""
SAME_SECONDS = 1.0
"""Seconds within which a second signal is the same request: schedulers send several."""


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
    """Restore the signal handlers at the end of the block, whatever a library sets in it. Does nothing outside the main
    thread, which cannot set any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in stops()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def leave_signals_to_driver() -> None:
    """Ignore the signals that a terminal or Slurm sends to the whole process group: the driver decides when to stop."""
    for each in (*stops(), signal.SIGHUP, NOTICE):
        signal.signal(each, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt once; later signals do not interrupt the clean-up that follows."""
    for each in (*stops(), signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _not_at_once() -> Callable[[int, FrameType | None], None]:
    """A handler that raises KeyboardInterrupt, but not within a second from now."""
    since = time.monotonic()

    def handler(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - since >= SAME_SECONDS:
            raise KeyboardInterrupt(signal.Signals(number).name)

    return handler


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal that ends a command in the block; ignore further ones until its end.
    A notice ends nothing.

    Schedulers repeat SIGTERM and SIGHUP, which would end a command that has stopped well in the middle of its last
    lines: once heeded, they are ignored until this process ends, where it ends with the command. Ctrl-C counts again a
    second later.
    """
    before = {each: signal.signal(each, _interrupt) for each in stops()}
    try:
        with _handled(lambda number, frame: None, NOTICE):
            yield
    finally:
        for each, old in before.items():
            heeded = signal.getsignal(each) is signal.SIG_IGN and _IS_COMMAND.is_set()
            if heeded and each == signal.SIGINT:
                signal.signal(each, _not_at_once())
            elif not heeded:
                signal.signal(each, old)


@dataclass
class StopRequest:
    """Whether somebody has asked this process to stop."""

    by: str | None = None
    """Name of the signal that asked; None while none has."""
    notices: int = 0
    """Number of notices that the machine will be taken."""


@contextmanager
def stop_gently(seconds: float, worth: Callable[[], bool]) -> Iterator[StopRequest]:
    """Only note the first signal that ends a command in the block, so that work can end well. A second Ctrl-C, a second
    later at the earliest, or a timer that expires after the first signal, raises KeyboardInterrupt; other further
    signals do nothing, as schedulers repeat theirs. Notices are counted. Use it within `stop_on_signals`.

    Args:
        seconds: seconds from the first signal until the timer expires.
        worth: whether there is anything to save; if not, the first signal raises, too.
    """
    request, first = StopRequest(), 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if request.by is None:
            request.by, first = signal.Signals(number).name, time.monotonic()
            if not worth():
                _interrupt(number, frame)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        elif number == signal.SIGINT and time.monotonic() - first >= SAME_SECONDS:
            _interrupt(number, frame)

    def noticed(number: int, frame: FrameType | None) -> None:
        request.notices += 1

    def late(number: int, frame: FrameType | None) -> None:
        by, request.by = request.by, request.by or "SIGALRM"
        _interrupt(signal.Signals[by or "SIGALRM"], frame)

    try:
        with _handled(note, *stops()), _handled(noticed, NOTICE), _handled(late, signal.SIGALRM):
            yield request
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if request.by is not None:  # the caller's clean-up is not interrupted either
            for each in stops():
                signal.signal(each, signal.SIG_IGN)
