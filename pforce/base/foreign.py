"""What a file from a stranger may do: its text names no path, sizes no allocation, and is never markup.

All readers of files that others may have written come here: for the path that a name inside a file stands for, for its
JSON, for an open file that is one, and for a text that is printed.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import reprlib
import stat
import unicodedata
from pathlib import Path
from typing import Any

MOST_INTEGER = 2**63 - 1
"""Largest whole number of a file, in magnitude: what 64 bits hold, far above any size, count or seed."""
MOST_DEPTH = 64
"""Deepest nesting of JSON."""
MOST_SHOWN = 500
"""Most characters of a file that an error repeats."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 8, 8, 8
_SHORT.maxstring = _SHORT.maxother = MOST_SHOWN
_UNSAFE = re.compile(r"[^ -~¡-¬®-\u02ff\n\t]")
"""Characters that may need a sign in their place; everything else is printed as it is."""


class ForeignError(ValueError):
    """A file, or a text in it, is not what its reader accepts. The reader adds the file's name and the remedy."""


def expect(holds: bool, otherwise: str) -> None:
    """Raise ForeignError with this message unless the condition holds."""
    if not holds:
        raise ForeignError(otherwise)


def _refuse(word: str) -> None:
    raise ForeignError(f"{word} is not a number in JSON")


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(number := int(digits)) > MOST_INTEGER:
        raise ForeignError(f"a whole number of {len(digits)} digits is beyond 64 bits")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    expect(math.isfinite(number), f"{digits[:30]} is beyond floating-point numbers")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ForeignError(f"it is nested more than {MOST_DEPTH} deep")


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text: whole numbers within 64 bits, no NaN or infinity, at most MOST_DEPTH deep.

    ForeignError, in one line, where it is anything else.
    """
    try:
        value = json.loads(content, parse_constant=_refuse, parse_int=_whole, parse_float=_finite)
    except ForeignError:
        raise
    except RecursionError:
        raise ForeignError(f"it is nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:  # of JSON, or of its encoding
        raise ForeignError(f"it is not JSON ({printable(str(error))})") from None
    if isinstance(value, dict | list):
        _check_depth(value)
    return value


def parse_object(content: bytes | str) -> dict[str, Any]:
    """The object of a JSON text, as `parse_json`. ForeignError where it is another value."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ForeignError(f"it holds a {type(value).__name__}, not an object")
    return value


def inside(folder: Path, name: str) -> Path:
    """The path that a name in a file stands for: below `folder`, also once symbolic links are followed.

    ForeignError for an absolute name, one with `..`, with a character that is none of a file's, or one whose link
    leads out.
    """
    parts = Path(name).parts
    long = any(len(os.fsencode(part)) > 255 for part in parts) or len(name) > 4096
    odd = not name or "\0" in name or printable(name) != name or long
    if odd or Path(name).is_absolute() or ".." in parts or not parts:
        raise ForeignError(f"{quoted(name)} is no name of a file below {folder}")
    path = folder / name
    try:
        within = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        within = False
    if not within:
        raise ForeignError(f"{quoted(name)} is a link that leads out of {folder}")
    return path


def open_regular(path: str | Path) -> io.BufferedReader:
    """A file open for reading. It does not block on a pipe.

    Raises:
        ForeignError: something other than a file is there.
        OSError: it is missing, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        expect(stat.S_ISREG(mode), f"it is {kind_of(mode)}, not a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def kind_of(mode: int) -> str:
    """What is at a path that is no file, by its `st_mode`: a folder, a pipe, a device."""
    for test, word in ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISLNK, "a link")):
        if test(mode):
            return word
    return "a device"


def _sign(found: re.Match[str]) -> str:
    character = found[0]
    # Controls, formatting (which turns the direction of what follows), surrogates, private and unassigned characters,
    # and separators of lines. A joiner is part of emoji.
    if character != "\u200d" and (unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")):
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return character


def printable(text: str) -> str:
    """The text with a visible sign for each character that a terminal would obey: `\\x1b` for an escape. Line ends and
    tabs stay."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_sign, text)


def quoted(text: object) -> str:
    """A value of a file as errors repeat it: in quotes, printable, in one line, at most MOST_SHOWN characters."""
    # A list that holds another one twice, which does so again, has a short file and an endless text.
    shown = repr(text[: MOST_SHOWN + 1]) if isinstance(text, str) else _SHORT.repr(text)
    return printable(shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…").replace("\n", " ")
