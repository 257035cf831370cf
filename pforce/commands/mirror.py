"""`pforce mirror`: show in MLflow what a storage holds, even after MLflow's store was changed or lost."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pforce.base.console import DONE, SOME_FAILED, make_console
from pforce.base.errors import ConfigError, InputError
from pforce.base.words import counted
from pforce.commands.stores import Store
from pforce.orchestration.report import Source, summary_of
from pforce.records.ledger import Ledger
from pforce.records.sweeps import SweepEntry, read_sweeps
from pforce.results.shown_models import ModelCounts, show_models
from pforce.results.sweep_run import Summary, show_sweep
from pforce.storage import Storage
from pforce.tracking import Mirror, Page, Shown, Tracker, TrackingError
from pforce.tracking.checks import why


def mirror(
    sweeps: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SWEEP …]")] = (),
    *,
    store: Store,
    restore: bool = False,
    models: bool = False,
) -> int:
    """Show in MLflow what the storage holds: sweeps, searches and evaluations, their numbers, curves and pictures.

    Use it for a store that was unreachable, emptied or lost, or for a new one. Existing runs are updated, and none is
    made twice. A run that somebody has deleted in MLflow stays deleted, unless --restore is given.

    Args:
        sweeps: names of sweeps; without any, all are shown.
        restore: also show again what was deleted in MLflow.
        models: also make the averaged weights of each finished cell a model of MLflow, which are copies of them. A call
            to mlflow.pyfunc.load_model("models:/ID").predict(table) draws an image per row of its column `class`.
    """
    console = make_console()
    store.check()
    place = store.place

    def say(line: str) -> None:
        console.print(f"warning: {line}", soft_wrap=True)

    entries = list(read_sweeps(place, say))
    known = sorted({entry.name for entry in entries})
    for name in sweeps:
        if name not in known:
            raise ConfigError(f"{name}: no sweep of {place} has this name; it holds {', '.join(known) or 'none'}")
    chosen = [entry for entry in entries if not sweeps or entry.name in sweeps]
    tracker, ledger = store.tracker, Ledger(place, say)
    tracker.check()
    try:
        return mirror_storage(place, tracker, ledger, console, chosen, restore=restore, models=models)
    except InputError:
        raise
    except Exception as error:  # every kind of store raises its own
        raise TrackingError(
            f"tracking store {tracker.shown} cannot be written: {why(error)}. What it already shows stays there; the "
            "same command resumes"
        ) from error


def mirror_storage(
    place: Storage, tracker: Tracker, ledger: Ledger, console: Console, entries: list[SweepEntry] | None = None, *,
    restore: bool = False, models: bool = False,
) -> int:  # fmt: skip
    """Show sweeps of a storage in MLflow (default: all), with a progress bar and a summary; return an exit code."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    entries = list(read_sweeps(place, ledger.say)) if entries is None else entries
    shows, total = Mirror(tracker, place, say), Shown()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pages: dict[str, Page] = {}
    counts: list[ModelCounts] = []
    with Progress(*columns, console=console, disable=not console.is_interactive, transient=True) as progress:
        task = progress.add_task("runs", total=sum(len(entry.cells) for entry in entries))
        before = 0
        for entry in entries:
            progress.update(task, description=entry.name)
            if entry.name not in pages:
                pages[entry.name] = shows.page(entry.name, _known(entries, entry.name), restore=restore)
            total += show_sweep(
                pages[entry.name], entry, ledger, restore=restore, summarize=partial(_summary, place, ledger),
                progress=partial(_advance, progress, task, before),
            )  # fmt: skip
            before += len(entry.cells)
            if models:
                counts.append(show_models(pages[entry.name], entry.cells, ledger))
    if models:
        made, there, lost = (sum(each) for each in zip(*counts, strict=True)) if counts else (0, 0, 0)
        gone = f", {lost} whose weights are gone" if lost else ""
        say(f"{counted(made, 'model')} made, {there} already there{gone}")
    deleted = f", {total.deleted} deleted in MLflow stay deleted (--restore shows them)" if total.deleted else ""
    refusals = len(shows.refused)
    refused = f", {refusals} refused: mend what refuses them, and the same command shows them" if refusals else ""
    say(
        f"{tracker.shown}: {counted(total.made, 'run')} made, {total.updated} updated, {total.there} already up to date"
        f"{deleted}{refused}"
    )
    return SOME_FAILED if refusals else DONE


def _summary(place: Storage, ledger: Ledger, entry: SweepEntry) -> Summary | None:
    """What a sweep has come to, from the storage."""
    return summary_of(entry.name, Source(place, ledger.say, sweep=entry.name, ledger=ledger), final=False)


def _advance(progress: Progress, task: TaskID, before: int, done: int) -> None:
    progress.update(task, completed=before + done)


def _known(entries: list[SweepEntry], name: str) -> set[str]:
    """Digests of the sweeps with a name, and of their cells."""
    same = [entry for entry in entries if entry.name == name]
    return {entry.identity for entry in same} | {cell.cell for entry in same for cell in entry.cells}
