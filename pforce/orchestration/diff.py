"""What differs between two cells, experiments or sweeps: their fields, and their numbers with intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pforce import catalog
from pforce.base.errors import ConfigError, did_you_mean
from pforce.base.files import read_whole
from pforce.base.words import counted
from pforce.config import flat_params
from pforce.metrics.names import BOUNDS, interval_names, read_names
from pforce.orchestration.axes import format_value
from pforce.orchestration.report import Source
from pforce.results import Report
from pforce.results.pictures import MAPS_PICTURE, pictures_of

DIGEST = re.compile(r"[0-9a-f]{6,32}")
FORMS = "a sweep's name, the digest of a cell (or its first digits), an experiment's name, or FILE.py:FUNCTION"
MISSING = "–"
NOT_FIELDS = ("name",)


@dataclass(frozen=True)
class Subject:
    """One of the two things that are compared."""

    name: str
    kind: str
    """cell, sweep or experiment."""
    fields: dict[str, str]
    """Dotted path → value; of a sweep, all values that its cells have."""
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row for each finished cell; empty for an experiment."""
    pictures: Sequence[tuple[bytes, str]] = ()
    """Pictures as (PNG, caption)."""


def subject(text: str, source: Source) -> Subject:
    """What a text names. ConfigError says what was looked for, and where."""
    frame = source.frame
    sweeps = sorted(set(frame["sweep"])) if len(frame) else []
    if text in sweeps:
        return _of_cells(text, "sweep", [cell for entry in source.sweeps if entry.name == text for cell in entry.cells],
                         frame[frame["sweep"] == text], source)  # fmt: skip
    if DIGEST.fullmatch(text):
        cells = [cell for digest, cell in source.cells.items() if digest.startswith(text)]
        if len(cells) == 1:
            own = frame[frame["fingerprint"] == cells[0].cell].head(1) if len(frame) else frame
            return _of_cells(cells[0].label, "cell", cells, own, source)
        if cells:
            raise ConfigError(f"{text}: begins {counted(len(cells), 'digest')} of {source.storage}; give more digits")
    if catalog.is_file(text) or text in catalog.experiments():
        plain = flat_params(catalog.experiment(text))
        return Subject(text, "experiment", {name: format_value(value) for name, value in plain.items()})
    near = did_you_mean(text, [*sweeps, *catalog.experiments()], "there are")
    raise ConfigError(f"{text}: is nothing in {source.storage}, and no experiment; give {FORMS}; {near}")


def _of_cells(name: str, kind: str, cells: Sequence[Any], frame: pd.DataFrame, source: Source) -> Subject:
    values: dict[str, dict[str, None]] = {}
    for cell in cells:
        for path, value in cell.params.items():
            values.setdefault(path, {})[format_value(value)] = None
    fields = {path: ", ".join(found) for path, found in values.items()}
    pictures = []
    for cell in cells:
        found = [path for path in pictures_of(source.storage, source.ledger, cell) if path.suffix == ".png"]
        pictures = [(read_whole(path), f"{name}: {_caption(path.name)}") for path in found]
        if pictures:
            break
    return Subject(name, kind, fields, frame[frame["status"] == "FINISHED"] if len(frame) else frame, pictures)


def _caption(name: str) -> str:
    return "held-out images and predicted σ" if name == MAPS_PICTURE else name.removesuffix(".png")


def fields_table(a: Subject, b: Subject) -> pd.DataFrame:
    """Fields that differ, a row each."""
    paths = dict.fromkeys([*a.fields, *b.fields])
    rows = [
        {"field": path, a_column(a): a.fields.get(path, MISSING), b_column(b): b.fields.get(path, MISSING)}
        for path in paths
        if a.fields.get(path) != b.fields.get(path) and path not in NOT_FIELDS
    ]
    return pd.DataFrame(rows)


def a_column(a: Subject) -> str:
    """Header of the first one's column."""
    return f"A: {a.name}"


def b_column(b: Subject) -> str:
    """Header of the second one's column."""
    return f"B: {b.name}"


def numbers_table(a: Subject, b: Subject) -> pd.DataFrame:
    """Numbers that either has, a row each: values with their intervals, of several cells their range, and B − A."""
    columns = dict.fromkeys([*map(str, a.numbers.columns), *map(str, b.numbers.columns)])
    names = read_names(name for name in columns if "/" in name or name in ("fid", "sfid", "kid", "is"))
    rows = []
    for name, read in names.items():
        if read.beside is not None or read.decile is not None:
            continue
        (left, one), (right, other) = (_shown(each, name) for each in (a, b))
        if left == right == MISSING:
            continue
        both = not (math.isnan(one) or math.isnan(other))
        rows.append({
            "number": name, a_column(a): left, b_column(b): right, "B − A": f"{other - one:+.4g}" if both else MISSING,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _shown(of: Subject, name: str) -> tuple[str, float]:
    """A number as text, and its value (of several cells, their mean)."""
    values = pd.to_numeric(of.numbers[name], errors="coerce").dropna() if name in of.numbers else pd.Series(dtype=float)
    if values.empty:
        return MISSING, math.nan
    mean = float(values.mean())
    if len(values) > 1:
        return f"{mean:.4g} ({values.min():.4g} … {values.max():.4g}, {len(values)} cells)", mean
    bounds = [of.numbers[each].iloc[0] for each in interval_names(name) if each in of.numbers]
    known = len(bounds) == len(BOUNDS) and not any(pd.isna(each) for each in bounds)
    return f"{mean:.4g} [{bounds[0]:.4g}, {bounds[1]:.4g}]" if known else f"{mean:.4g}", mean


def reports(a: Subject, b: Subject) -> tuple[Report, Report]:
    """The tables of fields and of numbers that differ."""
    fields, numbers = fields_table(a, b), numbers_table(a, b)
    same = [] if len(fields) else ["All fields are equal."]
    caution = (
        "B − A has no interval: it is a difference of two measurements, or of two means; a table of a sweep with "
        "several seeds says what is more than noise."
    )
    notes = [caution if len(numbers) else "Neither has numbers yet."]
    return Report(fields, "Fields that differ", same), Report(numbers, "Numbers", notes)
