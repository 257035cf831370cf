"""`pforce records`: list, show, forget, export, import, migrate and pack the records of a storage."""

from __future__ import annotations

import json
import math
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

from pforce.base.console import DONE, make_console, under_way
from pforce.base.errors import ConfigError, require
from pforce.base.words import counted
from pforce.commands.mirror import mirror_storage
from pforce.commands.stores import Place, Store
from pforce.orchestration.options import StorageOptions, StoreOptions
from pforce.records import exchange, packing
from pforce.records.ledger import Ledger
from pforce.records.parts import Kind
from pforce.records.provenance import provenance
from pforce.records.status import FINISHED
from pforce.storage import Storage
from pforce.tracking import runs_frame, sqlite_path
from pforce.trial.migrate import Carried, carry_lines
from pforce.trial.migrate_storage import carry_storage

Sweeps = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SWEEP …]")]
Digests = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIGEST …")]
Files = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE …")]
FIRST = "a sweep, `pforce train` or `pforce evaluate` makes the first"
MOST_SHOWN = 40
SUFFIX = ".jsonl"


def _say(console: Console) -> exchange.Say:
    return lambda line: console.print(f"warning: {line}", soft_wrap=True)


def _open(store: StorageOptions, console: Console) -> tuple[Storage, Ledger]:
    place = store.place
    return place, Ledger(place, _say(console))


def list_records(*, kind: Kind | None = None, every: bool = False, store: Place) -> int:
    """List the finished parts in a storage: trainings, weights, drawings, image metrics, held-out measurements.

    Args:
        kind: list only records of this kind.
        every: list all records, not only the newest 40.
    """
    console = make_console()
    place, ledger = _open(store, console)
    found = sorted(ledger.all(kind), key=lambda record: record.finished, reverse=True)
    if not found:
        console.print(f"No records in {place}: {FIRST}.", soft_wrap=True)
        return DONE
    table = Table(title=counted(len(found), "record"), title_justify="left")
    for name in ("digest", "kind", "finished", "seconds", "values", "origin"):
        table.add_column(name, justify="right" if name == "seconds" else "left", overflow="fold")
    for record in found if every else found[:MOST_SHOWN]:
        table.add_row(
            record.digest[:12], record.kind, time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished)),
            f"{record.cost.get('seconds', 0):,.1f}", Text(exchange.shown(record)), Text(record.origin or ""),
        )  # fmt: skip
    console.print(table)
    if not every and len(found) > MOST_SHOWN:
        console.print(f"{len(found) - MOST_SHOWN:,} older: --every")
    return DONE


def _whole_name(text: str, ledger: Ledger) -> str:
    """The only digest that begins with a text. ConfigError where there is none, or several."""
    found = [name for name in ledger.names() if name.startswith(text)] if len(text) >= 4 else []
    if len(found) != 1:
        what = "too short for any" if len(text) < 4 else "begins none" if not found else f"begins {len(found)}"
        raise ConfigError(
            f"{text}: {what} of the digests in {ledger.storage}; `pforce records list --every` lists them"
        )
    return found[0]


def show_record(digest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIGEST")], *, store: Place) -> int:
    """Print a whole record as JSON: values, inputs, machine and software, and cost.

    Where a part was measured twice with different numbers, all of its records are printed; the first is the one that
    counts.

    Args:
        digest: digest of the part, or its first digits (at least 4).
    """
    console = make_console()
    _, ledger = _open(store, console)
    for record in ledger.all_of(_whole_name(digest, ledger)):
        print(json.dumps({"digest": record.digest, **asdict(record)}, indent=1, ensure_ascii=False))
    return DONE


def forget_records(digests: Digests, *, reason: str, store: Place) -> int:
    """Write a tombstone for records: they no longer count, and what needs them is measured again.

    Nothing is deleted, and records of a part's inputs still count: to measure a model anew, forget all of its parts.

    Args:
        digests: digests of the parts, or their first digits.
        reason: reason that the tombstone gives.
    """
    if not digests:
        raise ConfigError("digests: must be at least one; `pforce records list` lists them")
    console = make_console()
    place, ledger = _open(store, console)
    place.check()
    for name in [_whole_name(text, ledger) for text in digests]:  # a wrong name is reported before any is forgotten
        count = ledger.forget(name, reason, who=provenance())
        console.print(f"{name}: {counted(count, 'record')} forgotten")
    return DONE


def export_records(sweeps: Sweeps, *, out: Path, store: Place) -> int:
    """Write sweeps and their records as JSON lines, for another storage or a repository.

    Args:
        sweeps: names of sweeps; without any, all are written.
        out: the file to write; its name ends in .jsonl.
    """
    require(out.suffix == SUFFIX, "out", str(out), f"a name that ends in {SUFFIX}: JSON lines are written")
    console = make_console()
    place, _ = _open(store, console)
    known = exchange.sweep_names(place, _say(console))
    for name in sweeps:
        exchange.check_name(name, known, place)
    try:
        records, written = exchange.export(place, sweeps, out, _say(console))
    except OSError as error:
        raise ConfigError(f"out = {out}: cannot be written ({error.strerror}); give another file") from error
    console.print(f"{out}: {counted(records, 'record')} of {counted(written, 'sweep')}")
    return DONE


def import_records(
    sources: Files,
    *,
    store: Store,
) -> int:
    """Import records into a storage: from files of `pforce records export`, or from another storage's folder.

    Imported parts count as done: sweeps do not measure them again. Their numbers cannot be verified, so tables name
    their origin. Files of commit 0641df2 are carried over as by `pforce records migrate`.

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
        console.print(f"{path}: {counted(taken.made, 'record')} imported, {taken.there} already there, "
                      f"{counted(taken.sweeps, 'sweep')}")  # fmt: skip
    _show(store, console)
    return DONE


def migrate_records(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FILE …]")],
    *,
    store: Store,
) -> int:
    """Carry over results of commit 0641df2: files of its records, and its trainings in the storage's folder.

    Each old fingerprint is computed again; a result that does not match is refused, and measured again. Finished cells
    and checkpoints are then found under their new names; nothing old is removed.

    Args:
        files: .jsonl files of its records; without any, only the storage's own trainings are carried over.
    """
    console = make_console()
    place = store.place
    place.check()
    for path in files:
        _told(_carry(path, place, console), str(path), console)
    old = place.root / "trials"
    if old.is_dir():
        with under_way(console, "carrying trainings over …") as say:
            carried = carry_storage(
                place, _say(console), _tracked(store, console),
                lambda what: say(f"carrying {what} over …"),
            )  # fmt: skip
        console.print(f"{counted(carried.trainings, 'training')} carried over")
        _told(carried, str(old), console)
    elif not files:
        console.print(
            f"{place}: holds no trainings of commit 0641df2 (folder trials); name files of its records", soft_wrap=True
        )
    _show(store, console)
    return DONE


def pack_records(*, older_than: float = 60.0, dry_run: bool = False, store: Place) -> int:
    """Write records into a few large files, for buckets and file systems where the number of files is limited.

    Every command reads packed records and single ones alike. Nothing is lost if this is killed or called several times
    at once, and sweeps may run meanwhile.

    Args:
        older_than: minutes since a part was finished before its record is packed.
        dry_run: say what would be done, and change nothing.
    """
    require(0 <= older_than < math.inf, "older_than", older_than, "a number of minutes, 0 or more")
    console = make_console()
    place = store.place
    if not dry_run:
        place.check()
    done = packing.pack(
        place, _say(console), older_than=60 * older_than, dry_run=dry_run, bar=lambda what, n: _bar(console, what, n)
    )
    console.print(f"{counted(done.records, 'record')} {'would be ' if dry_run else ''}packed")
    if done.merged:
        console.print(f"{counted(done.merged, 'pack')} replaced by larger ones")
    if done.young:
        console.print(f"{counted(done.young, 'record')} younger than {older_than:g} minutes: left as they are")
    if done.left:
        console.print(f"{counted(done.left, 'file')} that this version cannot read as a record: left as they are")
    for when, amount in (("before", done.before), *([] if dry_run else [("after", done.after)])):
        console.print(
            f"{when}: {counted(amount.loose, 'single record')}, {counted(amount.packs, 'pack')}, "
            f"{amount.bytes / 1e6:,.1f} MB"
        )
    return DONE


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[exchange.Advance]:
    with Progress(console=console, disable=not console.is_interactive, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _carry(path: Path, place: Storage, console: Console) -> Carried:
    with _bar(console, path.name, exchange.count_lines(path)) as advance:
        return carry_lines(path, place, _say(console), advance)


def _told(carried: Carried, what: str, console: Console) -> None:
    told = f"{what}: {counted(carried.cells, 'cell')} carried over, {len(carried.refused)} refused"
    console.print(told)
    for line in carried.refused:
        console.print(f"warning: {line}", soft_wrap=True)


def _tracked(store: StoreOptions, console: Console) -> dict[str, dict[str, str]]:
    """Old fingerprint → fields of its run in that commit's MLflow store; empty where there is no store."""
    uri = store.uri
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        return {}
    frame = runs_frame(store.tracker)
    found = {}
    # Runs whose driver was killed are finished in the storage only; finished runs say most, and come last.
    rows = sorted(frame.to_dict("records"), key=lambda row: row["status"] == FINISHED)
    for row in rows:
        found[str(row["fingerprint"])] = {
            "sweep": str(row["sweep"]), "name": str(row["run_name"]), "precision": str(row.get("computed_in") or ""),
            "device": str(row.get("device") or ""),
        }  # fmt: skip
    searched = frame["sampler.json"].notna().sum() if "sampler.json" in frame else 0
    if searched:
        console.print(
            f"{counted(int(searched), 'measurement')} of sampler searches recorded too little to be identified: they "
            "are measured again", soft_wrap=True,
        )  # fmt: skip
    return found


def _show(store: StoreOptions, console: Console) -> None:
    """Show all cells of a storage as MLflow runs."""
    mirror_storage(store.place, store.tracker, Ledger(store.place, _say(console)), console)
