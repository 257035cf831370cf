"""Where groups of workers take their cells from and leave their reports.

A module of its own that imports nothing: it runs in a process that starts beside theirs, on the same cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pforce.orchestration.worker import Payload


@dataclass
class Desk:
    """An actor on the driver's node: hands out cells and takes in reports, in order."""

    waiting: list[Payload]
    reports: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    at: dict[int, Payload] = field(default_factory=dict)
    """slot → the cell under way."""
    failures: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    """slot → reasons and messages."""
    begun: set[int] = field(default_factory=set)
    """Numbers of the groups that have asked for a cell."""
    closed: bool = False

    def next(self, slot: int, group: int) -> Payload | None:
        """The next cell for a group; the one that its slot was at, where the group before lost it."""
        self.begun.add(group)
        if self.closed:
            return None
        if slot not in self.at:
            if not self.waiting:
                return None
            self.at[slot] = self.waiting.pop(0)
            self.reports.append((self.at[slot]["fingerprint"], {"phase": "started"}))
        return self.at[slot]

    def report(self, slot: int, message: dict[str, Any]) -> bool:
        """What the first worker of a group reports. Returns whether it should go on."""
        self.reports.append((self.at[slot]["fingerprint"], message))
        if message["phase"] in ("done", "trained", "failed"):
            del self.at[slot]
        return not self.closed

    def failed(self, slot: int, reason: str, message: str) -> None:
        """What any worker says before it ends."""
        self.failures.setdefault(slot, []).append((reason, message))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """Reports since the last call."""
        found, self.reports = self.reports, []
        return found

    def ended(self, slot: int) -> tuple[str | None, list[tuple[str, str]], int]:
        """The cell a group was at, what its workers said, and the number of cells that wait."""
        here = self.at.get(slot)
        return here and here["fingerprint"], self.failures.pop(slot, []), len(self.waiting)

    def give_up(self, slot: int) -> None:
        """The cell of a group is not tried again."""
        self.at.pop(slot, None)

    def has_begun(self, group: int) -> bool:
        """Whether a group's workers have met."""
        return group in self.begun

    def close(self) -> None:
        """Every group ends at its next report."""
        self.closed = True
