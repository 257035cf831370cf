"""A record: one finished part as an immutable file, and the one place that checks a record from outside.

`records/AA/DIGEST.CONTENT.json`: DIGEST names the part, AA are its first two digits, CONTENT is the hash of the file's
bytes. So a file whose name and content disagree is damaged, two results of one part stand side by side, and records of
two storages merge by copying.
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
from pforce.metrics.names import CostName
from pforce.records.parts import Kind, Part

FORMAT = 2
"""1 were the lines of JSON of commit 0641df2 (`pforce.records.lines`)."""
MOST_BYTES = 4 << 20
"""A record is a few kilobytes: what is larger than this is not read."""
MOST_DEPTH = 12
TIMES = (CostName.SAMPLING_SECONDS,)
"""Values that are of the machine and the hour."""
KINDS = get_args(Kind)
NAME = re.compile(r"(?P<digest>[0-9a-f]{32})\.(?P<content>[0-9a-f]{32})\.json")
DIGEST = re.compile(r"[0-9a-f]{32}")
HASH = re.compile(r"[0-9a-f]{64}")


class RecordError(InputError, ValueError):
    """A record is damaged, or not one. The message names the file, what is wrong, and the cure."""


class NewerRecord(RecordError):
    """A record of a newer pforce, which this one must not guess at."""


@dataclass(frozen=True)
class Record:
    """A finished part: what was found, what it cost, and where and with what it was made."""

    kind: Kind
    identity: Mapping[str, Any]
    """canonical, versions, parents: what the digest is of."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What was found; numbers under their fixed names, null where one is undefined or infinite."""
    undefined: Mapping[str, str] = field(default_factory=dict)
    """Name → why its value is null."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name → sha256 of a file that belongs to it, which lies in `files/` under that hash."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know."""
    started: float = 0.0
    """Seconds since 1970."""
    finished: float = 0.0
    origin: str | None = None
    """Where its numbers come from, where they were not measured into this storage: they cannot be verified."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """What this part alone took, with the names of `pforce.records.cost.Cost`, which reads it. A mapping and not that
    value, as a record keeps what it does not know: its bytes name it."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """commit, changes, versions, device, precision, workers, host, user."""

    @classmethod
    def of(cls, part: Part, **more: Any) -> Record:
        """The record of a part; values that are not finite become null with their reason."""
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
        """The values that another measurement of the part should have, too: no times, and not where it diverged."""
        return {} if self.kind == "diverged" else {name: v for name, v in self.values.items() if name not in TIMES}

    def number(self, name: str) -> float:
        """A value; NaN where it is undefined or not there."""
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
    """`DIGEST.CONTENT.json` and the content."""
    content = record.to_bytes()
    return f"{record.digest}.{content_digest(content)}.json", content


def parse(content: bytes, name: str) -> Record:
    """A record from outside, checked whole: its form, its name, its own digest, the types and names in it.

    Nothing in it is a path, a size or markup; numbers cannot be verified.

    Args:
        name: the file's name, DIGEST.CONTENT.json.

    Raises:
        NewerRecord: another version made it.
        RecordError: anything else that is wrong.
    """
    named = NAME.fullmatch(name)
    if named is None:
        raise RecordError(f"record {name!r}: is not named DIGEST.CONTENT.json")
    if content_digest(content) != named["content"]:
        raise RecordError(f"record {name} is damaged: its content is not what its name says")
    return parse_content(content, name, named["digest"])


def parse_content(content: bytes, name: str, named: str | None = None) -> Record:
    """`parse` of a content that carries no hash of its own, such as a line of an exported file."""
    try:
        data = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"record {name} is damaged: it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise RecordError(f"record {name}: is a {type(data).__name__}, not a record")
    version = data.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise NewerRecord(
            f"record {name}: has format {version}, this pforce reads {FORMAT}: a newer one made it. Install that one"
        )
    try:
        record = _checked(data)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"record {name}: is not well-formed ({error})") from error
    if data.get("digest") != record.digest or (named is not None and named != record.digest):
        raise RecordError(f"record {name}: holds the part {record.digest}, which is not what it is called by")
    return record


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _checked(data: dict[str, Any]) -> Record:
    """A record from plain data. KeyError, TypeError or ValueError for what has no place in one."""
    known = {each.name for each in fields(Record)}
    if unknown := data.keys() - known - {"format", "digest"}:
        raise ValueError(f"unknown fields {', '.join(sorted(map(str, unknown)))}")
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r}, where {FORMAT} is read")
    if data["kind"] not in KINDS:
        raise ValueError(f"kind {data['kind']!r}, where there are {', '.join(KINDS)}")
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
        _require(_number(data[name]), f"{name} = {data[name]!r}: a time in seconds")
    notes, origin = data["notes"], data["origin"]
    _require(isinstance(notes, list) and all(isinstance(note, str) for note in notes), "notes are texts")
    _require(origin is None or isinstance(origin, str), "origin is a text or null")
    for name, value in data["values"].items():
        _require(value is not None or name in data["undefined"], f"{name} is null without a reason")
        _require(value is None or isinstance(value, str | int | float | dict | list), f"{name} is no value")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _depth(value: Any, most: int) -> None:
    if most < 0:
        raise ValueError(f"nested more than {MOST_DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        _depth(item, most - 1)
