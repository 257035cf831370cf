"""A report: one table with its title, notes and claims, for the terminal and as files of all formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
from rich.console import Console

from pforce.base.files import write_text
from pforce.results import formats
from pforce.results.page import Section, page


@dataclass(frozen=True)
class Report:
    """A table of numbers with title, notes and claims: of a sweep, a table of the paper, a front, or an evaluation."""

    table: pd.DataFrame
    """Unrounded numbers, as `pforce.results.cell_table` makes them."""
    title: str = ""
    notes: Sequence[str] = ()
    """Notes for readers of the numbers."""
    claims: Sequence[str] = field(default_factory=list)
    """Conclusions from the numbers, in sentences."""
    question: str = ""
    """Question that the table answers."""

    @cached_property
    def _texts(self) -> pd.DataFrame:
        return formats.display(self.table)

    @property
    def header(self) -> list[str]:
        """Names of the shown columns."""
        return [str(name) for name in self._texts.columns]

    @property
    def cells(self) -> Iterator[list[str]]:
        """Rows of the table as texts."""
        return (list(map(str, row)) for row in self._texts.itertuples(index=False))

    @property
    def legend(self) -> str:
        """Explanation of ± and brackets in the table."""
        return formats.legend(self.table)

    def print(self, console: Console) -> None:
        """Print the table, notes and claims on a terminal."""
        for part in formats.to_terminal(self.table, self.title, console.width):
            console.print(part)
        claims = ["Claims:", *(f"  {claim}" for claim in self.claims)] if self.claims else []
        for line in (*(f"note: {note}" for note in self.notes), *claims):
            console.print(line, soft_wrap=True)

    def write(self, stem: Path) -> list[Path]:
        """Write the report as .csv (all numbers, unrounded), .md, .tex and .html, and return the files.

        Args:
            stem: path without suffix; its name may have dots.
        """
        heading = [f"# {self.title}"] if self.title else []
        heading += [self.question] if self.question else []
        section = Section("", self.question, Report(self.table, "", self.notes, self.claims))
        texts = {
            "csv": formats.to_csv(self.table),
            "md": "\n\n".join([*heading, formats.to_markdown(self.table, self.notes, self.claims)]) + "\n",
            "tex": formats.to_latex(self.table, self.title, self.notes, self.claims),
            "html": page(self.title, "", [section]),
        }
        written = []
        for ending, text in texts.items():
            written.append(Path(f"{stem}.{ending}"))  # not with_suffix: a sweep's name may have a dot
            write_text(written[-1], text)
        return written
