"""`pforce report`: write one HTML page about sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.base.files import write_bytes
from pforce.base.words import counted
from pforce.commands.stores import Place
from pforce.orchestration.options import check_folder
from pforce.orchestration.report import Source, section_of
from pforce.results.page import page


def report(
    sweeps: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP …")],
    *,
    out: Path | None = None,
    title: str = "Patch Forcing: what was measured",
    store: Place,
) -> int:
    """Write one self-contained HTML page about sweeps: tables, findings, figures, samples, cost, commands.

    Args:
        sweeps: names of sweeps, such as ltg_grid or timestep_schedules-cpu (TABLE-SCALE of `pforce reproduce`).
        out: the file to write; default: report.html in the storage folder.
        title: title of the page.
    """
    if not sweeps:
        raise ConfigError("sweeps: must be at least one name; `pforce runs` lists them")
    console = make_console()
    place = store.place
    path = out or place.root / "report.html"
    check_folder(path.parent, "--out")
    source = Source(place, lambda line: console.print(f"warning: {line}", soft_wrap=True))
    sections = [section_of(name, source) for name in sweeps]
    intro = f"{', '.join(sweeps)}. Made {pd.Timestamp.now():%d %B %Y, %H:%M}. Numbers are means over training seeds."
    text = page(title, intro, sections)
    write_bytes(path, text.encode("ascii"))
    console.print(f"{path}: {counted(len(sections), 'sweep')}, {len(text) / 1e6:.1f} MB", soft_wrap=True)
    return DONE
