"""`pforce records`: what a storage knows, as a list, as files, and out of other storages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.commands.mirror import mirror_storage
from pforce.commands.stores import Place, Store
from pforce.orchestration.options import StorageOptions, StoreOptions
from pforce.records import exchange
from pforce.records.ledger import Ledger
from pforce.records.parts import Kind
from pforce.records.provenance import provenance
from pforce.records.status import FINISHED
from pforce.storage import Storage
from pforce.tracking import runs_frame, sqlite_path
from pforce.trial.migrate import Carried, carry_lines
from pforce.trial.migrate_storage import carry_storage

Names = Annotated[tuple[str, ...], tyro.conf.Positional]
FIRST = "a sweep, `pforce train` or `pforce evaluate` makes the first"
MOST_SHOWN = 40


def _say(console: Console) -> exchange.Say:
    return lambda line: console.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)


def _open(store: StorageOptions, console: Console) -> tuple[Storage, Ledger]:
    place = store.place
    return place, Ledger(place, _say(console))


def list_records(*, kind: Kind | None = None, every: bool = False, store: Place) -> int:
    """List the finished parts that a storage knows: trainings, weights, drawings, image metrics, held-out measurements.

    Args:
        kind: only records of this kind.
        every: list all, not the newest 40.
    """
    console = make_console()
    place, ledger = _open(store, console)
    found = sorted(ledger.all(kind), key=lambda record: record.finished, reverse=True)
    if not found:
        console.print(f"No records in {place}: {FIRST}.", highlight=False, markup=False, soft_wrap=True)
        return DONE
    table = Table(title=f"{len(found):,} records", title_justify="left")
    for name in ("digest", "kind", "finished", "seconds", "values", "origin"):
        table.add_column(name, justify="right" if name == "seconds" else "left", overflow="fold")
    for record in found if every else found[:MOST_SHOWN]:
        table.add_row(
            record.digest[:12], record.kind, time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished)),
            f"{record.cost.get('seconds', 0):,.1f}", Text(exchange.shown(record)), Text(record.origin or ""),
        )  # fmt: skip
    console.print(table)
    if not every and len(found) > MOST_SHOWN:
        console.print(f"{len(found) - MOST_SHOWN:,} older: --every", highlight=False)
    return DONE


def _whole_name(text: str, ledger: Ledger) -> str:
    """The digest that begins so. ConfigError where there is none, or several."""
    found = [name for name in ledger.names() if name.startswith(text)] if len(text) >= 4 else []
    if len(found) != 1:
        what = "too short" if len(text) < 4 else "no record" if not found else f"{len(found)} records"
        raise ConfigError(f"{text}: {what} of {ledger.storage} begins so; `pforce records list --every` lists them")
    return found[0]


def show_record(digest: Annotated[str, tyro.conf.Positional], *, store: Place) -> int:
    """Print a record whole, as JSON: values, what it was made from, where and with what, and what it cost.

    Where a part was measured twice with different numbers, all of its records are printed, the one that counts first.

    Args:
        digest: of the part, or its first digits (4 at least).
    """
    console = make_console()
    _, ledger = _open(store, console)
    for record in ledger.all_of(_whole_name(digest, ledger)):
        print(json.dumps({"digest": record.digest, **asdict(record)}, indent=1, ensure_ascii=False))
    return DONE


def forget_records(digests: Names, *, reason: str, store: Place) -> int:
    """Write a tombstone for records: they count no more, and what needs them is measured again.

    Nothing is deleted. What a part of it was made from stays: to measure a model anew, forget its parts.

    Args:
        digests: of the parts, or their first digits.
        reason: why, for whoever finds the tombstone.
    """
    if not digests:
        raise ConfigError("digests: must be at least one; `pforce records list` lists them")
    console = make_console()
    place, ledger = _open(store, console)
    place.check()
    for name in [_whole_name(text, ledger) for text in digests]:  # what is wrong with any is said before any is gone
        count = ledger.forget(name, reason, who=provenance())
        console.print(f"{name}: {count} record(s) forgotten", highlight=False)
    return DONE


def export_records(sweeps: Names, *, out: Path, store: Place) -> int:
    """Write sweeps and their records as lines of JSON, for another storage or a repository.

    Args:
        sweeps: names of sweeps; none of them means all.
        out: the file, ending in .jsonl.
    """
    console = make_console()
    place, _ = _open(store, console)
    known = exchange.sweep_names(place, _say(console))
    for name in sweeps:
        exchange.check_name(name, known, place)
    try:
        records, written = exchange.export(place, sweeps, out, _say(console))
    except OSError as error:
        raise ConfigError(f"out = {out}: cannot be written ({error.strerror}); give another file") from error
    console.print(f"{out}: {records} records of {written} sweep(s)", highlight=False, markup=False)
    return DONE


def import_records(
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    store: Store,
) -> int:
    """Take records into a storage: from files of `pforce records export`, or from another storage's folder.

    What is imported counts as done: a sweep that has such a part does not measure it. Its numbers cannot be verified,
    so tables name where they come from. Files of commit 0641df2 are carried over as by `pforce records migrate`.

    Args:
        sources: .jsonl files, or folders that are storages.
    """
    if not sources:
        raise ConfigError("sources: must be at least one file of records (.jsonl), or the folder of a storage")
    console = make_console()
    store.check()
    place = store.place
    for path in sources:
        if exchange.is_old(path):
            _told(_carry(path, place, console), str(path), console)
            continue
        say = _say(console)
        taken = (
            exchange.import_storage(place, Storage.open(path), say)
            if path.is_dir()
            else exchange.import_lines(place, path, say)
        )
        console.print(f"{path}: {taken.made} records taken, {taken.there} were there, {taken.sweeps} sweep(s)",
                      highlight=False, markup=False)  # fmt: skip
    _show(store, console)
    return DONE


def migrate_records(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    store: Store,
) -> int:
    """Carry results of commit 0641df2 over: files of its records, and what it left in the storage's folder.

    Each old fingerprint is computed again; a result that does not match is refused, and measured again. Finished cells
    and checkpoints are found again afterwards, under their new names; nothing old is removed.

    Args:
        files: .jsonl files of its records; without any only the storage's own trainings are carried over.
    """
    console = make_console()
    place = store.place
    place.check()
    for path in files:
        _told(_carry(path, place, console), str(path), console)
    old = place.root / "trials"
    if old.is_dir():
        with console.status("carrying trainings over …") as status:
            carried = carry_storage(
                place, _say(console), _tracked(store, console),
                lambda what: status.update(f"carrying {what} over …"),
            )  # fmt: skip
        console.print(f"{carried.trainings} training(s) carried over", highlight=False)
        _told(carried, str(old), console)
    elif not files:
        console.print(f"{place}: holds no trainings of commit 0641df2 (folder trials); name files of its records",
                      highlight=False, markup=False, soft_wrap=True)  # fmt: skip
    _show(store, console)
    return DONE


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[exchange.Advance]:
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _carry(path: Path, place: Storage, console: Console) -> Carried:
    with _bar(console, path.name, exchange.count_lines(path)) as advance:
        return carry_lines(path, place, _say(console), advance)


def _told(carried: Carried, what: str, console: Console) -> None:
    console.print(f"{what}: {carried.cells} cell(s) carried over, {len(carried.refused)} refused", highlight=False,
                  markup=False)  # fmt: skip
    for line in carried.refused:
        console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)


def _tracked(store: StoreOptions, console: Console) -> dict[str, dict[str, str]]:
    """Old fingerprint → what the MLflow store of then says of it; empty where there is none."""
    uri = store.uri
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        return {}
    frame = runs_frame(store.tracker)
    found = {}
    # One whose driver was killed is finished in the storage only; a finished one says most.
    rows = sorted(frame.to_dict("records"), key=lambda row: row["status"] == FINISHED)
    for row in rows:
        found[str(row["fingerprint"])] = {
            "sweep": str(row["sweep"]), "name": str(row["run_name"]), "precision": str(row.get("computed_in") or ""),
            "device": str(row.get("device") or ""),
        }  # fmt: skip
    searched = frame["sampler.json"].notna().sum() if "sampler.json" in frame else 0
    if searched:
        console.print(
            f"{searched} measurement(s) of sampler searches do not say enough to be named: they are measured again",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return found


def _show(store: StoreOptions, console: Console) -> None:
    """All of a storage's cells as runs, for the page."""
    mirror_storage(store.place, store.tracker, Ledger(store.place, _say(console)), console)
