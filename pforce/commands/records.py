"""`pforce records`: finished trials as files, out of a store and into another."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pforce import records
from pforce.commands.store_options import open_store
from pforce.orchestration.plan import tracker_of
from pforce.orchestration.script import print_mlflow
from pforce.storage import Storage, default_storage
from pforce.terminal import DONE, make_console
from pforce.tracking import sweep_names
from pforce.tracking.exchange import exported, imported
from pforce.validation import ConfigError, did_you_mean


def _advance(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def export_records(
    sweeps: tyro.conf.Positional[tuple[str, ...]],
    *,
    out: Path,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> int:
    """Write the finished trials of sweeps as lines of JSON, for another store or a repository.

    Args:
        sweeps: names of sweeps; none of them means all.
        out: the file, ending in .jsonl. Trials that it has already are not written again.
        storage: where sweeps leave their files; by default $PFORCE_STORAGE, else runs.
        tracking_uri: MLflow store; by default the database in the storage folder.
    """
    console = make_console()
    tracker = open_store(storage or default_storage(), tracking_uri, console)
    if tracker is None:
        return DONE
    known = sweep_names(tracker)
    for name in sweeps:
        if name not in known:
            raise ConfigError(f"{name}: no such sweep in {tracker.shown}; {did_you_mean(name, known, 'it has')}")
    found = [record for name in (sweeps or (None,)) for record in exported(tracker, name)]
    there = {(r["sweep"], r["fingerprint"]) for r in (records.read(out) if out.exists() else [])}
    new = [record for record in records.merged([found]) if (record["sweep"], record["fingerprint"]) not in there]
    try:
        for record in new:
            records.append(out, record)
    except OSError as error:
        raise ConfigError(f"out = {out}: cannot be written ({error.strerror}); give another file") from error
    console.print(f"{out}: {len(new)} records written, {len(there)} were there", highlight=False, markup=False)
    return DONE


def import_records(
    files: tyro.conf.Positional[tuple[Path, ...]],
    *,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> int:
    """Take records into the tracking store: a finished run each, told by fingerprint, none twice.

    What is imported counts as done: a sweep that has such a cell does not run it.

    Args:
        files: of `pforce records export`, or of experiments/gpu_suite.py.
        storage: where sweeps leave their files; by default $PFORCE_STORAGE, else runs.
        tracking_uri: MLflow store; by default the database in the storage folder.
    """
    if not files:
        raise ConfigError("files: must be at least one file of records (.jsonl)")
    console = make_console()
    several = {path: records.read(path) for path in files}  # what is wrong with any is said before anything is written
    place = Storage.open(storage or default_storage())
    place.check()
    tracker = tracker_of(place, tracking_uri)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        for path, found in several.items():
            task = bar.add_task(path.name, total=len(found))
            made, before = imported(tracker, records.merged([found]), path, partial(_advance, bar, task))
            console.print(f"{path}: {made} runs made, {before} were there", highlight=False, markup=False)
    print_mlflow(tracker.uri, console)
    return DONE
