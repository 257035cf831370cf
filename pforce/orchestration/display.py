"""Progress of running work of any kind: bars on an interactive terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 20.0


class Display:
    """One bar for the whole with the time left, and one per running task; without a terminal, lines now and then.

    Args:
        what: name of the whole: sweep, sampling.
        total, done: total and finished units; a task may count as several.
        unit: name of the units: trials, images.
    """

    def __init__(self, console: Console, what: str, total: int, done: int = 0, unit: str = "trials") -> None:
        self.console = console
        self.total, self.unit = total, unit
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self.all = self.progress.add_task(what, total=float(total), completed=done, note="")
        self.finished = float(done)
        self.tasks: dict[str, TaskID] = {}
        self.shares: dict[str, float] = {}
        """Label of a running task → units of it that are done."""
        self.last_line = time.monotonic()
        self.started = time.monotonic()
        self.at_start = self.finished

    def __enter__(self) -> Display:
        if self.console.is_interactive:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_interactive:  # elsewhere it would print an empty line
            self.progress.stop()

    def update(self, label: str, share: float, note: str, *, units: int = 1) -> None:
        """Show that a running task of `units` units is `share` done."""
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(f"  {label}", total=1.0, note=note)
        if share > 0 and not self.shares.get(label) and units == 1:
            # A resumed trial's earlier work is not of this run: counting it would make the time left too short.
            self.at_start += share
        self.shares[label] = share * units
        self.progress.update(self.tasks[label], completed=share, note=note)
        self._advance()
        if not self.console.is_interactive and time.monotonic() - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(self._line(f"{label}: {note}"))

    def end(self, label: str, note: str | None, *, units: int = 1) -> None:
        """Show that a task has ended, however it ended.

        Args:
            note: result to show; None shows nothing, for one task among hundreds.
        """
        self.shares.pop(label, None)
        if label in self.tasks:
            self.progress.remove_task(self.tasks.pop(label))
        self.finished += units
        self._advance()
        if note is not None:
            self.console.print(self._line(f"{label}: {note}"))

    def extend(self, units: int, *, done: int = 0) -> None:
        """Add units to the total, some of which may be finished already."""
        self.total += units
        self.finished += done
        self.at_start += done
        self.progress.update(self.all, total=float(self.total))

    def elsewhere(self, units: int) -> None:
        """Count units that another process has finished."""
        self.finished += units
        self.at_start += units
        self._advance()

    def line(self, text: str) -> None:
        """Print a line at once."""
        self.console.print(text, soft_wrap=True)

    def _advance(self) -> None:
        done = self.finished + sum(self.shares.values())
        self.progress.update(self.all, completed=done, note=f"{self.finished:,.0f}/{self.total:,} {self.unit}")

    def _line(self, text: str) -> str:
        done = self.finished + sum(self.shares.values())
        worked, elapsed = done - self.at_start, time.monotonic() - self.started
        left = f", about {elapsed / worked * (self.total - done):.0f} s left" if worked > 0 else ""
        return f"[{self.finished:,.0f}/{self.total:,}{left}] {text}"
