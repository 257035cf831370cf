"""`pforce diff`: show what differs between two cells, experiments or sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from pforce.base.console import DONE, make_console
from pforce.base.files import write_bytes
from pforce.commands.stores import Place
from pforce.orchestration.diff import reports, subject
from pforce.orchestration.options import check_folder
from pforce.orchestration.report import Source
from pforce.results.page import Section, page


def diff(
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
    *,
    out: Path | None = None,
    store: Place,
) -> int:
    """Show what differs between two cells, experiments or sweeps: fields, numbers with intervals, pictures.

    Args:
        a: the first: a sweep's name, the digest of a cell (or its first digits), an experiment, or FILE.py:FUNCTION.
        b: the second.
        out: an HTML file to write, with the pictures of both side by side.
    """
    console = make_console()
    if out is not None:
        check_folder(out.parent, "--out")
    source = Source(store.place, lambda line: console.print(f"warning: {line}", soft_wrap=True))
    first, second = subject(a, source), subject(b, source)
    fields, numbers = reports(first, second)
    for report in (fields, numbers):
        if len(report.table):
            report.print(console)
        else:
            for note in report.notes:
                console.print(note, soft_wrap=True)
    if out is not None:
        sections = [
            Section("Fields that differ", report=fields if len(fields.table) else None, summary=fields.notes),
            Section("Numbers", report=numbers if len(numbers.table) else None, summary=numbers.notes,
                    pictures=[*first.pictures, *second.pictures]),
        ]  # fmt: skip
        write_bytes(
            out, page(f"{first.name} and {second.name}", f"A is a {first.kind}, B a {second.kind}.", sections).encode()
        )
        console.print(f"{out}: {len(first.pictures)} and {len(second.pictures)} pictures", soft_wrap=True)
    return DONE
