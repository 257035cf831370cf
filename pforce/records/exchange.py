"""Export of records and sweeps as lines of JSON, and import from such lines or from another storage, which merges
results of separate machines.

A line is a record, or a sweep's list of cells. Imported lines are checked in their form only: digests are computed
again and nothing in a line is used as a path. Numbers cannot be verified, so they carry the name of their source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pforce.base.errors import ConfigError, did_you_mean
from pforce.base.files import read_whole, write_bytes
from pforce.base.foreign import ForeignError, open_regular, parse_json
from pforce.metrics.names import BOUNDS, read_names
from pforce.records.ledger import FILES, Ledger, take_in
from pforce.records.looks import note_look, read_looks
from pforce.records.parts import Request
from pforce.records.record import MOST_BYTES, Record, RecordError, parse_content
from pforce.records.row import TENSORS
from pforce.records.sweeps import SWEEP_LINE, SWEEPS, CellEntry, SweepEntry, checked_sweep, read_sweeps, sweep_line
from pforce.storage import Storage

MOST_SWEEP_LINE = 64 << 20
Say = Callable[[str], None]
Advance = Callable[[int], None]


class Taken(NamedTuple):
    """Counts of an import."""

    made: int
    """Number of records that are new."""
    there: int
    """Number of records that were there already."""
    sweeps: int


def cells_records(cells: Iterable[CellEntry], ledger: Ledger) -> Iterator[Record]:
    """All records that cells consist of, each once."""
    given: set[str] = set()
    for cell in cells:
        parts = cell.parts()
        if parts is not None:
            weights = ledger.get(parts.weights)
            found = [ledger.get(parts.training), ledger.get(parts.diverged), weights]
            tensors = None if weights is None else weights.values.get(TENSORS)
            request = parts.request
        elif cell.digests:
            found, tensors, request = [ledger.get(each) for each in cell.digests], None, None
        else:
            found, tensors, request = [], cell.weights, Request.from_plain(cell.request)
        if isinstance(tensors, str) and request is not None:
            drawn = [request.drawn(tensors)] if request.images else []
            found += [ledger.get(part) for part in (*request.parts(tensors), *drawn)]
        for record in found:
            if record is not None and record.digest not in given:
                given.add(record.digest)
                yield record


def export(storage: Storage, names: Sequence[str], path: Path, say: Callable[[str], None]) -> tuple[int, int]:
    """Write the sweeps of these names (all where none is given) and their records as lines. Returns (records,
    sweeps)."""
    ledger, lines, records = Ledger(storage, say), [], 0
    chosen: Sequence[str | None] = names or [None]
    sweeps = [entry for name in chosen for entry in read_sweeps(storage, say, name)]
    given: set[str] = set()
    for entry in sweeps:
        lines.append(sweep_line(entry))
        for record in cells_records(entry.cells, ledger):
            if record.digest not in given:
                given.add(record.digest)
                lines.append(json.dumps(json.loads(record.to_bytes()), sort_keys=True, allow_nan=False))
                records += 1
    write_bytes(path, ("\n".join(lines) + "\n").encode() if lines else b"")
    return records, len(sweeps)


def import_lines(storage: Storage, path: Path, say: Callable[[str], None]) -> Taken:
    """Import a file of lines into a storage. RecordError, before anything is written, where a line is not
    well-formed."""
    records, sweeps = [], []
    try:
        with open_regular(path) as file:
            lines = list(iter(lambda: file.readline(MOST_SWEEP_LINE + 1), b""))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read as records: {error}") from error
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if len(line) > MOST_SWEEP_LINE:
            raise RecordError(f"{where}: is longer than {MOST_SWEEP_LINE:,} bytes: not a record")
        if line.startswith(SWEEP_LINE):
            sweeps.append(checked_sweep(line, where))
        elif line.strip():
            if len(line) > MOST_BYTES:
                raise RecordError(f"{where}: is longer than {MOST_BYTES:,} bytes: not a record")
            records.append(parse_content(line, where))
            if records[-1].kind == "tombstone":
                raise RecordError(
                    f"{where}: is a tombstone, which is not imported: `pforce records forget` forgets records here"
                )
    return _taken(storage, records, sweeps, path.name, say)


def import_storage(storage: Storage, other: Storage, say: Callable[[str], None]) -> Taken:
    """Import the records and sweeps of another storage, with their files for figures, without drawings, and the looks
    at its tables."""
    theirs = Ledger(other, say)
    records = list(theirs.all())
    ledger = Ledger(storage, say)
    for record in records:
        for sha256 in record.files.values():
            if not storage.has(f"{FILES}/{sha256[:2]}/{sha256}") and (path := theirs.file(sha256)):
                ledger.put_file(read_whole(path), sha256)
    taken = _taken(storage, records, list(read_sweeps(other, say)), str(other), say)
    for name in sweep_names(other, say):
        for look in read_looks(other, name, say):
            note_look(storage, name, look, say)
    return taken


def _taken(
    storage: Storage, records: Sequence[Record], sweeps: Sequence[SweepEntry], origin: str, say: Callable[[str], None]
) -> Taken:
    ledger = Ledger(storage, say)
    made = sum(take_in(ledger, record, origin) for record in records)
    for entry in sweeps:
        if not storage.has(f"{SWEEPS}/{entry.name}/{entry.identity}.json"):
            entry.write(storage)
    return Taken(made, len(records) - made, len(sweeps))


def shown(record: Record) -> str:
    """A record's first three values as a short text for lists."""
    numbers = record.numbers()
    names = read_names(numbers)
    further = {text for text, name in names.items() if name.beside in BOUNDS or name.decile is not None}
    told = [f"{name} {value:.4g}" for name, value in numbers.items() if name not in further and not math.isnan(value)]
    return ", ".join(told[:3])


def sweep_names(storage: Storage, say: Say) -> list[str]:
    """Names of a storage's sweeps, sorted."""
    return sorted({entry.name for entry in read_sweeps(storage, say)})


def check_name(name: str, known: Sequence[str], storage: Storage) -> None:
    """Raise ConfigError, with the nearest name, for a sweep that the storage does not have."""
    if name not in known:
        raise ConfigError(f"{name}: no such sweep in {storage}; {did_you_mean(name, known, 'it has')}")


def is_old(path: Path) -> bool:
    """Whether a file holds lines in the format of commit 0641df2. RecordError where it cannot be read."""
    if path.is_dir():
        return False
    try:
        with open_regular(path) as file:
            first = file.readline(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read as records: {error}") from error
    try:
        line = parse_json(first)
    except ForeignError:
        return False
    return isinstance(line, dict) and line.get("format") == 1 and "fingerprint" in line


def count_lines(path: Path) -> int:
    """Number of lines of a file, for a progress bar."""
    with open_regular(path) as file:
        return sum(1 for _ in file)
