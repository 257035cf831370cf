"""What a check returns, and how one that crashes is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "problem"]
SIGNS: dict[State, str] = {"ok": "✓", "warning": "!", "problem": "✗"}


class Check(NamedTuple):
    """What was looked at, how it is, what was found, and what to do about it."""

    name: str
    state: State
    """problem: would stop a run, or spoil it."""
    found: str
    cure: str = ""


def checked(name: str, check: Callable[[], Check | list[Check]]) -> list[Check]:
    """Its results; a check that crashes is a problem with the exception, and stops no other check."""
    try:
        result = check()
    except Exception as error:  # whatever it is, the user learns of it as of any other problem
        text = f"the check itself failed: {type(error).__name__}: {error}"
        return [Check(name, "problem", text, "Run it again; if it fails again, please report this message.")]
    return [result] if isinstance(result, Check) else result


def gib(count: float) -> str:
    """Bytes as GiB."""
    return f"{count / 2**30:,.1f} GiB"
