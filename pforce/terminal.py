"""What every command and script shares: exit codes, the console, and how an error of the input is said.

It imports nothing of the method, so that a command answers at once where it needs neither models nor stores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from pforce.validation import InputError

DONE, USAGE_ERROR, SOME_FAILED, STOPPED = 0, 2, 3, 4
"""Exit codes: all done, wrong input, some trials failed, stopped before the end."""


def exit_on_errors(main: Callable[[], int]) -> NoReturn:
    """Run a script's main; errors of the user's input are one line and exit code 2, before anything is started."""
    try:
        code = main()
    except InputError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        code = USAGE_ERROR
    sys.exit(code)


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
