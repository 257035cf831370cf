"""A record: one finished part as an immutable file, and the one place that checks a record from outside.

`records/AA/DIGEST.CONTENT.json`: DIGEST names the part, AA are its first two digits, CONTENT is the hash of the file's
bytes. So a file whose name and content disagree is damaged, two results of one part can exist side by side, and records
of two storages merge by copying.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from pforce.base.errors import InputError
from pforce.base.files import content_digest, digest
from pforce.base.foreign import ForeignError, parse_object, printable, quoted
from pforce.metrics.names import CostName
from pforce.records.parts import Kind, Part

FORMAT = 2
"""Version of the format. Version 1 were the lines of JSON of commit 0641df2 (`pforce.records.legacy`)."""
MOST_BYTES = 4 << 20
"""Largest file that is read; a record has a few kilobytes."""
MOST_DEPTH = 12
MOST_TIME = 2.0**33
"""Latest time in seconds since 1970, in the year 2242: later ones are no dates to pandas."""
TIMES = (CostName.SAMPLING_SECONDS,)
"""Values that differ between repetitions of the same measurement."""
KINDS = get_args(Kind)
NAME = re.compile(r"(?P<digest>[0-9a-f]{32})\.(?P<content>[0-9a-f]{32})\.json")
DIGEST = re.compile(r"[0-9a-f]{32}")
HASH = re.compile(r"[0-9a-f]{64}")


class RecordError(InputError, ValueError):
    """A record is damaged, or is not a record. The message gives the file and the reason."""


class NewerRecord(RecordError):
    """A record of a newer pforce, which this version cannot read."""


@dataclass(frozen=True)
class Record:
    """A finished part: its results, its cost, and its provenance."""

    kind: Kind
    identity: Mapping[str, Any]
    """Identity that the digest is the hash of: canonical, versions, parents."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Results; numbers under their fixed names, null where one is undefined or infinite."""
    undefined: Mapping[str, str] = field(default_factory=dict)
    """Name → reason why its value is null."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name → SHA-256 of a file that belongs to the record and lies in `files/` under that hash."""
    notes: tuple[str, ...] = ()
    """Notes for readers of the numbers."""
    started: float = 0.0
    """Time of the start, in seconds since 1970; `finished` likewise."""
    finished: float = 0.0
    origin: str | None = None
    """Source of the numbers, where they were not measured into this storage and so cannot be verified; else None."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """Cost of this part alone, under the names of `pforce.records.cost.Cost`, which reads it. It is a mapping, so that
    a record keeps entries that this version does not know: its bytes name it."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Provenance: commit, changes, versions, device, precision, workers, host, user."""

    @classmethod
    def of(cls, part: Part, **more: Any) -> Record:
        """The record of a part. Values that are not finite become null with a reason."""
        values = dict(more.pop("values", {}))
        undefined = dict(more.pop("undefined", {}))
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = None
                undefined.setdefault(name, "not a number" if math.isnan(value) else "infinite")
        return cls(part.kind, part.identity, values, undefined, **more)

    @property
    def digest(self) -> str:
        """The part's name."""
        return digest(self.kind, self.identity)

    @property
    def parents(self) -> tuple[str, ...]:
        """Digests of the parts that it was made from."""
        return tuple(self.identity["parents"])

    @property
    def results(self) -> dict[str, Any]:
        """The values that another measurement of the part should reproduce: without times, and without the point of
        divergence."""
        return {} if self.kind == "diverged" else {name: v for name, v in self.values.items() if name not in TIMES}

    def number(self, name: str) -> float:
        """A value by name; NaN where it is undefined or missing."""
        value = self.values.get(name)
        return math.nan if value is None else float(value)

    def numbers(self) -> dict[str, float]:
        """All numeric values, NaN where one is undefined."""
        return {
            name: math.nan if value is None else float(value)
            for name, value in self.values.items()
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        }

    def to_bytes(self) -> bytes:
        """The file's content."""
        data = {name.name: getattr(self, name.name) for name in fields(self)}
        data = {"format": FORMAT, "digest": self.digest, **data, "notes": list(self.notes)}
        return (json.dumps(data, sort_keys=True, allow_nan=False, indent=1) + "\n").encode()


def file_name(record: Record) -> tuple[str, bytes]:
    """A record's file name, `DIGEST.CONTENT.json`, and its content."""
    content = record.to_bytes()
    return f"{record.digest}.{content_digest(content)}.json", content


def parse(content: bytes, name: str) -> Record:
    """Parse a record from outside and check all of it: its form, its name, its digest, its types and names.

    Nothing in it is used as a path, a size or markup; numbers cannot be verified.

    Args:
        name: the file's name, DIGEST.CONTENT.json.

    Raises:
        NewerRecord: a newer version made it.
        RecordError: it is damaged or not well-formed.
    """
    named = NAME.fullmatch(name)
    if named is None:
        raise RecordError(f"record {name!r}: is not named DIGEST.CONTENT.json")
    if content_digest(content) != named["content"]:
        raise RecordError(f"record {name} is damaged: its content does not match its name")
    return parse_content(content, name, named["digest"])


def parse_content(content: bytes, name: str, named: str | None = None) -> Record:
    """Parse as `parse` a content without a hash of its own, such as a line of an exported file."""
    name = printable(name)
    try:
        data = parse_object(content)
    except ForeignError as error:
        raise RecordError(f"record {name} is damaged, or no record: {error}") from error
    version = data.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise NewerRecord(
            f"record {name}: has format {version}, this pforce reads {FORMAT}: a newer one made it. Install that one"
        )
    try:
        record = _checked(data)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"record {name}: is not well-formed ({printable(str(error))})") from error
    if data.get("digest") != record.digest or (named is not None and named != record.digest):
        raise RecordError(f"record {name}: holds the part {record.digest}, which does not match its name")
    return record


def _checked(data: dict[str, Any]) -> Record:
    """A record from plain data. KeyError, TypeError or ValueError where it is not well-formed."""
    known = {each.name for each in fields(Record)}
    if unknown := data.keys() - known - {"format", "digest"}:
        raise ValueError(f"unknown fields {quoted(', '.join(sorted(unknown)))}")
    if data["format"] != FORMAT:
        raise ValueError(f"format {quoted(data['format'])}, this version reads {FORMAT}")
    if data["kind"] not in KINDS:
        raise ValueError(f"kind {quoted(data['kind'])}, where there are {', '.join(KINDS)}")
    _depth(data, MOST_DEPTH)
    _check_identity(data["identity"])
    _check_tables(data)
    return Record(**{**{name: data[name] for name in known}, "notes": tuple(data["notes"])})


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _check_identity(identity: Any) -> None:
    whole = isinstance(identity, dict) and identity.keys() == {"canonical", "versions", "parents"}
    _require(whole, "an identity has canonical, versions and parents")
    parents = identity["parents"]
    _require(all(isinstance(parent, str) and DIGEST.fullmatch(parent) for parent in parents), "parents are digests")


def _check_tables(data: dict[str, Any]) -> None:
    for name in ("undefined", "files", "provenance", "cost", "values"):
        _require(isinstance(data[name], dict), f"{name} is a table")
    for name in ("undefined", "files", "provenance"):
        _require(all(isinstance(value, str) for value in data[name].values()), f"{name} is a table of texts")
    _require(all(HASH.fullmatch(value) for value in data["files"].values()), "files are named by their sha256")
    _require(all(_number(value) and value >= 0 for value in data["cost"].values()), "cost is numbers, 0 or more")
    for name in ("started", "finished"):
        possible = _number(data[name]) and 0 <= data[name] <= MOST_TIME
        _require(possible, f"{name} = {quoted(data[name])}: a time in seconds since 1970")
    notes, origin = data["notes"], data["origin"]
    _require(isinstance(notes, list) and all(isinstance(note, str) for note in notes), "notes are texts")
    _require(origin is None or isinstance(origin, str), "origin is a text or null")
    for name, value in data["values"].items():
        _require(value is not None or name in data["undefined"], f"{name} is null without a reason")
        _require(value is None or isinstance(value, str | int | float | dict | list), f"{name} is not a value")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _depth(value: Any, most: int) -> None:
    if most < 0:
        raise ValueError(f"nested more than {MOST_DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        _depth(item, most - 1)
