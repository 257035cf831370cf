"""Results of checks, and the report of a check that crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "problem"]
SIGNS: dict[State, str] = {"ok": "✓", "warning": "!", "problem": "✗"}


class Check(NamedTuple):
    """The result of a check: its subject, its state, the finding, and the remedy."""

    name: str
    state: State
    """State of the subject; a problem would stop or spoil a run."""
    found: str
    cure: str = ""


def checked(name: str, check: Callable[[], Check | list[Check]]) -> list[Check]:
    """The results of a check; one that crashes is a problem with the exception, and does not stop other checks."""
    try:
        result = check()
    except Exception as error:  # any exception is reported like any other problem
        text = f"the check itself failed: {type(error).__name__}: {error}"
        return [Check(name, "problem", text, "Run it again; if it fails again, please report this message.")]
    return [result] if isinstance(result, Check) else result


def gib(count: float) -> str:
    """A number of bytes as text in GiB."""
    return f"{count / 2**30:,.1f} GiB"
