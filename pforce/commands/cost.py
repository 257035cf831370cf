"""`pforce cost`: device-hours of the runs in a store, by sweep, user, device or day."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from rich.table import Table
from rich.text import Text

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.base.files import write_whole
from pforce.base.words import counted
from pforce.commands.stores import SHORT, WIDE, Store, about, nothing_there, open_store, own_pages
from pforce.results.costs import OUTCOMES, By, costs, run_costs
from pforce.tracking import runs_frame

UNITS = {"gpu": "GPU", "cpu": "core", "unknown": "device"}


def cost(
    *,
    by: By = "sweep",
    csv: Path | None = None,
    everyone: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    store: Store,
) -> int:
    """Show what the runs of a store cost: device-hours of finished, failed and killed trials, images, seconds, share.

    Hours of GPUs and of CPU cores are listed separately. A training that several trials share counts once. Failed and
    killed trials gave no result, but their hours count too.

    Args:
        by: property by which runs are grouped: sweep, user (who ran the driver), device (the GPU's name, or cpu), or
            day (in UTC, on which a trial ended; all of its hours count on that day).
        csv: also write the table to this file, unrounded.
        everyone: on a server, count the runs of all storages and people, not only those of this storage.
    """
    console = make_console()
    tracker = open_store(store, console)
    if tracker is None:
        return DONE
    own = own_pages(store, everyone=everyone)
    of_runs = run_costs(runs_frame(tracker, keys=own))
    if of_runs.empty:
        console.print(nothing_there(tracker, store, own), soft_wrap=True)
        return DONE
    table = costs(of_runs, by)
    console.print(cost_table(table, by, console.width))
    for note in notes(of_runs, by):
        console.print(f"note: {note}", soft_wrap=True)
    if csv is not None:
        try:
            write_whole(csv, lambda scratch: table.to_csv(scratch, index=False))
        except OSError as error:
            raise ConfigError(f"csv = {csv}: cannot be written ({error.strerror}); give another file") from error
        console.print(f"{csv}: {counted(len(table), 'row')}")
    return DONE


def notes(of_runs: pd.DataFrame, by: By = "sweep") -> list[str]:
    """Notes on the limits of the numbers of `pforce.results.costs.run_costs`."""
    found = []
    unrecorded, shared = int((~of_runs["recorded"]).sum()), of_runs["shared_hours"].sum()
    if unrecorded:
        found.append(f"{counted(unrecorded, 'run')} recorded no cost (ended before the first point of their curve, or "
                     "made by an earlier version): they count as 0")  # fmt: skip
    if shared >= 5e-4:
        found.append(f"{shared:,.3f} device-hours of trainings that several trials share are counted once")
    late = of_runs[of_runs["days"] > 1]
    if by == "day" and len(late):
        found.append(f"{counted(len(late), 'trial')} ended on a later day (UTC) than they began: all of their "
                     f"{late['device_hours'].sum():,.3f} device-hours count on the day of their end")  # fmt: skip
    if (of_runs["kind"] == "unknown").any():
        found.append("device: runs that only evaluate do not record theirs; they count as one device")
    return found


def cost_table(table: pd.DataFrame, by: By, width: int) -> Table:
    """Table of `pforce.results.costs.costs`, with a total per kind of device; without the time on a narrow terminal."""
    wide = width >= WIDE
    caption = (
        "hours: device-hours, of the unit; time: duration of the trials."
        if wide
        else "hours: device-hours, of the unit."
    )
    shown = Table(title=f"Cost by {by}", title_justify="left", caption=caption, caption_justify="left")
    shown.add_column(by, overflow="fold", no_wrap=table[by].str.len().max() <= SHORT)
    shown.add_column("unit")
    outcomes = [name for name in OUTCOMES if name != "running" or table["running_hours"].gt(0).any()]
    for name in ("trials", "hours", *outcomes, "images", *(("time",) if wide else ()), "share"):
        shown.add_column(name, justify="right", no_wrap=True)
    for kind, part in table.groupby("kind", sort=False):
        for _, row in part.iterrows():
            shown.add_row(Text(str(row[by])), *_cells(row, str(kind), outcomes, wide))
        total = part.drop(columns=[by, "kind"]).sum()
        if len(part) > 1:
            shown.add_section()
            shown.add_row("total", *_cells(total, str(kind), outcomes, wide), style="bold")
        shown.add_section()
    return shown


def _cells(row: pd.Series, kind: str, outcomes: list[str], wide: bool) -> list[str | Text]:
    def hours(name: str, style: str = "") -> Text:
        value = row[name]
        return Text(f"{value:,.3f}" if value else "–", style=style if value else "")

    lost = {"failed": "red", "killed": "yellow", "running": "cyan"}
    return [
        UNITS[kind],
        f"{row['trials']:,.0f}",
        hours("device_hours"),
        *(hours(f"{name}_hours", lost.get(name, "")) for name in outcomes),
        f"{row['images']:,.0f}",
        *((about(row["seconds"]),) if wide else ()),
        f"{100 * row['share']:.0f} %",
    ]
