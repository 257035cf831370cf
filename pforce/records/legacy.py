"""Finished trials as lines of JSON: what a machine without a tracking store leaves, and what a repository keeps.

A record has everything that a run in MLflow has but its curve: parameters, metrics, tags. A trial is known by its
fingerprint, so files of several machines and days merge without asking (`pforce records import`).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from pforce.validation import InputError

FORMAT = 1


class RecordError(InputError, ValueError):
    """A file holds no records that this version reads."""


class TrialRecord(TypedDict):
    """A finished trial."""

    format: int
    sweep: str
    """Name of the sweep (MLflow experiment)."""
    name: str
    """Its label: `row=LTG seed=0`."""
    fingerprint: str
    params: dict[str, str]
    metrics: dict[str, float]
    """Last values; those that are not finite are left out, as JSON has no word for them."""
    tags: dict[str, str]
    """Seed, training, device, versions, and what else a run is tagged with."""
    started: int
    ended: int
    """Milliseconds since 1970."""
    step: int
    """Images seen."""
    files: list[str]
    """Pictures, relative to the file of the records; they may be left out."""


def append(path: Path, record: TrialRecord) -> None:
    """One more line. What a killed writer left of its last line is no record, and does not spoil this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
    with path.open("ab+") as file:
        cut = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write((b"\n" if cut else b"") + line.encode())


def read(path: Path) -> list[TrialRecord]:
    """All records of a file, in order. A damaged line is passed over with a warning.

    RecordError where the file cannot be read, or is of another format.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read as records: {error}") from error
    found: list[TrialRecord] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            warnings.warn(f"{path}, line {number}: passed over, as it is no whole record", stacklevel=2)
            continue
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            kind = record.get("format") if isinstance(record, dict) else type(record).__name__
            raise RecordError(f"{path}, line {number}: format {kind!r}, this version reads {FORMAT}")
        if missing := TrialRecord.__required_keys__ - record.keys():
            raise RecordError(f"{path}, line {number}: lacks {', '.join(sorted(missing))}")
        found.append(record)  # type: ignore[arg-type]  # its keys were just checked
    return found


def merged(several: Iterable[Sequence[TrialRecord]]) -> list[TrialRecord]:
    """Records of several files, one a (sweep, fingerprint): the one that ended first, as a finished cell is final."""
    first: dict[tuple[str, str], TrialRecord] = {}
    for record in sorted((record for part in several for record in part), key=lambda record: record["ended"]):
        first.setdefault((record["sweep"], record["fingerprint"]), record)
    return list(first.values())
