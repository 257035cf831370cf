"""`pforce runs`: show the progress of the sweeps in a store, and the trials of one."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Annotated

import pandas as pd
import tyro
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError, did_you_mean, require
from pforce.commands.stores import NONE, SHORT, WIDE, Store, about, clock, nothing_there, open_store, own_pages
from pforce.records.sweeps import names_of_sweeps
from pforce.results import progress
from pforce.tracking import Tracker, sweep_names

COLOURS = {"done": "green", "running": "cyan", "silent": "yellow", "stopped": "yellow", "failed": "red"}
NEWEST = 20
"""Number of sweeps shown without --all."""
BAR = 8
"""Width of a progress bar, in characters."""


def runs(
    sweep: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SWEEP]")] = None,
    *,
    trials: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    every: Annotated[bool, tyro.conf.arg(name="all"), tyro.conf.FlagCreatePairsOff] = False,
    everyone: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    watch: float | None = None,
    store: Store,
) -> int:
    """Show the progress of sweeps: trials done and open, cost, time left, best distance. SWEEP: its trials.

    While a sweep runs, its trials are ordered by what is known of them: the measured ones by the metric that rows are
    compared by, then the others by the images that they have seen, with their last loss. Afterwards by their start.

    A run that has not ended, but has reported nothing for 10 minutes, is shown as silent: its process may be dead, and
    the same command then resumes from its last checkpoint.

    Args:
        sweep: name of a sweep whose trials are shown, such as ltg_grid; where its axes or seeds were changed, the
            newest one.
        trials: show the trials of all sweeps in the table.
        every: show all sweeps, not only the newest 20; with SWEEP, also its trials with earlier axes or seeds.
        everyone: on a server, show the sweeps of all storages and people, not only those of this storage.
        watch: seconds between refreshes, until Ctrl-C; without it, the command shows the state once.
    """
    require(watch is None or watch >= 1, "watch", watch, "≥ 1 second")
    console = make_console()
    tracker = open_store(store, console)
    if tracker is None:
        return DONE

    def shown() -> RenderableType:
        own = own_pages(store, everyone=everyone)
        found = progress.read(tracker, sweep, keys=own)
        if found.sweeps.empty:
            if sweep is not None:
                raise ConfigError(_unknown(tracker, store, sweep, own))
            return Text(nothing_there(tracker, store, own))
        return view(found, console.width, sweep, trials=trials, every=every)

    if watch is None:
        console.print(shown())
        return DONE
    with contextlib.suppress(KeyboardInterrupt):  # how watching ends
        _watch(console, watch, shown)
    return DONE


def _watch(console: Console, seconds: float, shown: Callable[[], RenderableType]) -> None:
    if not console.is_interactive:
        while True:
            console.print(shown())
            time.sleep(seconds)
    with Live(shown(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            time.sleep(seconds)
            live.update(shown(), refresh=True)


def view(
    found: progress.Read, width: int, sweep: str | None = None, *, trials: bool = False, every: bool = False
) -> RenderableType:
    """Tables of what was read, which has sweeps, in `width` columns."""
    now = progress.now_utc()
    table = progress.sweeps(found, now)
    if not every:
        table = table.head(1 if sweep is not None else NEWEST)
    parts: list[RenderableType] = [sweeps_table(table, now, width)]
    if sweep is not None or trials:
        of_trials = progress.trials(found.runs, now)
        parents = found.sweeps.set_index("run_id", drop=False)
        for _, row in table.iterrows():
            parent, differs = parents.loc[row["run_id"]], row["differs"]
            which = f" ({differs})" if differs else ""
            title = f"{parent['sweep']}{which}, started {clock(parent['start_time'], now)}"
            own = progress.members(parent, of_trials).sort_values("started", kind="stable")
            if row["state"] in ("running", "silent"):
                own = progress.by_what_is_known(own, found.runs, row["metric"])
            parts.append(trials_table(own, now, width, title, row["metric"]))
    more = len(found.sweeps) - len(table)
    if more:
        what = "of this name with other axes or seeds" if sweep is not None else "older"
        parts.append(Text(f"{more} more {what}: --all", style="dim"))
    if (table["state"] == "silent").any():
        parts.append(
            Text("silent: its process may be dead; if so, the same command resumes from the last checkpoints.")
        )
    return Group(*parts)


def _unknown(tracker: Tracker, store: Store, sweep: str, own: list[str] | None) -> str:
    if own is None:
        return f"sweep = {sweep!r}: is not in {tracker.shown}; {did_you_mean(sweep, sweep_names(tracker))}"
    near = did_you_mean(sweep, names_of_sweeps(store.place), "it has")
    return f"sweep = {sweep!r}: is no sweep of {store.place} in {tracker.shown} (--everyone reads all); {near}"


def _number(value: float, text: str) -> str:
    return NONE if value is None or math.isnan(value) else format(value, text)


def _state(row: pd.Series, now: pd.Timestamp, *, since: bool) -> Text:
    silent = since and row["state"] == "silent"
    text = f"silent since {clock(row['last_activity'], now)}" if silent else str(row["state"])
    return Text(text, style=COLOURS[row["state"]])


def bar(share: float, style: str, size: int = BAR) -> Text:
    """Progress bar such as `━━━━╌╌╌╌  50 %`; a dash for NaN."""
    if math.isnan(share):
        return Text(NONE)
    full = math.floor(share * size + 1e-9)
    shown = f"{math.floor(100 * share + 1e-9):>4} %"  # 99.6 % is not done
    return Text.assemble(("━" * full, style), ("╌" * (size - full), "bright_black"), shown if size else shown.strip())


def _counts(row: pd.Series) -> Text:
    """Text such as `4/6, 1 running, 1 failed`."""
    others = [Text(f"{row[s]} {s}", style=COLOURS[s]) for s in ("running", "failed", "stopped") if row[s]]
    return Text(", ").join([Text(f"{row['done']}/{row['planned']}"), *others])


def sweeps_table(table: pd.DataFrame, now: pd.Timestamp, width: int) -> Table:
    """Table of `pforce.results.progress.sweeps`; shorter on fewer than 120 columns."""
    wide = width >= WIDE
    shown = Table(title="Sweeps", title_justify="left")
    shown.add_column("sweep", overflow="fold", no_wrap=table["sweep"].str.len().max() <= SHORT)
    shown.add_column("state", no_wrap=True)
    shown.add_column("trials")
    shown.add_column("progress", no_wrap=True, justify="right")
    shown.add_column("device hours", justify="right")
    for name in ("started", "last activity", "time left") if wide else ("left, or last activity",):
        shown.add_column(name, justify="right", no_wrap=wide)
    shown.add_column("best", justify="right", overflow="fold")
    for _, row in table.iterrows():
        left, last = about(row["seconds_left"]), clock(row["last_activity"], now)
        times = (clock(row["started"], now), last, left) if wide else (last if left == NONE else f"{left} left",)
        shown.add_row(
            Text.assemble(row["sweep"], (f"\n{row['differs']}" if row["differs"] else "", "dim")),
            _state(row, now, since=wide),
            _counts(row),
            bar(row["progress"], COLOURS[row["state"]], BAR if wide else 0),
            _number(row["device_hours"], ",.2f"),
            *times,
            NONE if row["metric"] is None or pd.isna(row["best"]) else Text(f"{row['metric']} {row['best']:.4g}"),
        )
    return shown


def trials_table(
    table: pd.DataFrame, now: pd.Timestamp, width: int, title: str, metric: str | None = None
) -> Table:  # fmt: skip
    """Table of `pforce.results.progress.trials` of a sweep, in its order; shorter on fewer than 120 columns.

    Args:
        metric: metric of the column `value`, which `by_what_is_known` adds while the sweep runs, as it adds the loss.
    """
    wide = width >= WIDE
    trained, reasons = table["images"].notna().any(), table["reason"].notna().any()
    retried, short = table["attempts"].gt(1).any(), table["label"].str.len().max() <= SHORT
    known = "value" in table
    columns = [("trial", True), ("state", True), ("reason", reasons), (str(metric), known and metric is not None),
               ("loss", known and trained), ("progress", True), ("images seen", trained),
               ("images/s", trained), ("device hours", True), ("started", wide), ("time left", True),
               ("attempts", retried)]  # fmt: skip
    shown = Table(title=title, title_justify="left")
    for name, there in columns:
        if there:
            words = name in ("trial", "state", "reason", "progress")
            narrow = name in ("reason", "device hours", "images/s") or (name == "trial" and not short)
            shown.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not narrow)
    for _, row in table.iterrows():
        seen = f"{_number(row['images_seen'], ',.0f')}/{_number(row['images'], ',.0f')}"
        cells: list[RenderableType] = [
            Text(str(row["label"])),
            _state(row, now, since=wide),
            Text("" if pd.isna(row["reason"]) else str(row["reason"])),
            _number(row["value"] if known else math.nan, ".4g"),
            _number(row["loss"], ".4f"),
            bar(row["progress"], COLOURS[row["state"]], BAR if wide else BAR // 2),
            seen if row["images"] > 0 else NONE,
            _number(row["images_per_second"], ",.0f"),
            _number(row["device_hours"], ",.3f"),
            clock(row["started"], now),
            about(row["seconds_left"]),
            str(row["attempts"]),
        ]
        shown.add_row(*(cell for cell, (_, there) in zip(cells, columns, strict=True) if there))
    return shown
