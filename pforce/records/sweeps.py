"""Files that list the cells of a sweep, kept beside its results, so that a storage can be read as tables without
planning.

`sweeps/NAME/IDENTITY.json` lists its cells, each with its label, its parameters, and the identities of its parts. It
holds no results; those are in records. It is rewritten as a whole whenever it grows, and has a checksum.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pforce.base.errors import require
from pforce.base.files import digest, read_small, write_json
from pforce.base.foreign import parse_object, quoted
from pforce.records.lease import leased
from pforce.records.parts import CellParts, Part, Request
from pforce.records.record import MOST_TIME, RecordError
from pforce.storage import Storage

IMAGES = "images_seen"
"""Header of the column of images seen, where a training is measured at several."""
SWEEPS = "sweeps"
"""Folder of sweeps below a storage's root."""
FORMAT = 1
MOST_BYTES = 256 << 20
MOST_IMAGES = 1 << 53
NAME = re.compile(r"[\w.-]{1,200}")
DIGEST = re.compile(r"[0-9a-f]{32}")
FILE = re.compile(r"[0-9a-f]{32}\.json")


def require_name(name: str) -> None:
    """Raise FieldError unless a sweep can have this name."""
    possible = bool(NAME.fullmatch(name)) and set(name) != {"."}
    allowed = "1 to 200 letters, digits, '.', '_' and '-', not dots alone (it names files)"
    require(possible, "name", name if len(name) <= 300 else f"{name[:300]}…", allowed)


@dataclass(frozen=True)
class CellEntry:
    """A cell in a sweep's file."""

    label: str
    cell: str
    """Digest of the cell."""
    params: Mapping[str, Any]
    """All fields of the experiment by dotted path."""
    request: Mapping[str, Any]
    """The request, as `Request.plain` writes it."""
    seed: int = 0
    training: Mapping[str, Any] | None = None
    """Identity of the training; None where nothing is trained."""
    images_seen: int = 0
    weights: str | None = None
    """Hash of the tensors of a given model; else None."""
    digests: Sequence[str] | None = None
    """Digests of its records, where given images are measured and there is no model."""
    values: Sequence[Sequence[str]] = ()
    """(header, value) of each axis, as the sweep's table shows them."""
    asked: float = 0.0
    """Time at which a command last asked for it, in seconds since 1970."""

    @classmethod
    def of(
        cls, label: str, parts: CellParts, params: Mapping[str, Any], seed: int, values: Sequence[Sequence[str]] = ()
    ) -> CellEntry:
        """The entry of a cell that is trained."""
        return cls(
            label, parts.digest, params, parts.request.plain(), seed, parts.training.identity, parts.images_seen,
            values=values, asked=time.time(),
        )  # fmt: skip

    @property
    def current(self) -> bool:
        """Whether its name is still up to date: false where a component's version has been raised since."""
        parts = self.parts()
        return parts is None or parts.digest == self.cell

    def parts(self) -> CellParts | None:
        """The cell's parts; None where its weights were given."""
        if self.training is None:
            return None
        t = self.training
        training = Part("training", t["canonical"], t["versions"], tuple(t["parents"]))
        return CellParts(training, self.images_seen, Request.from_plain(self.request))


@dataclass(frozen=True)
class SweepEntry:
    """A sweep's file: its name, identity and cells."""

    name: str
    identity: str
    cells: Sequence[CellEntry]
    created: float = field(default_factory=time.time)
    command: str = ""
    user: str = ""
    axes: Sequence[str] = ()
    """Dotted paths of the fields that vary, in order."""
    settings: Mapping[str, Any] | None = None
    """The fields that its cells have in common, by dotted path; None where it is not known by its name."""

    def must_be(self, name: str, identity: str) -> None:
        """Raise ValueError unless the sweep has this name and identity."""
        if (self.name, self.identity) != (name, identity):
            raise ValueError("it is of another sweep")

    def write(self, storage: Storage) -> None:
        """Write the file; one with the same name and identity is replaced."""
        data = {"format": FORMAT, **asdict(self)}
        relative = f"{SWEEPS}/{self.name}/{self.identity}.json"
        write_json(storage.root / relative, {**data, "checksum": _checksum(data)})
        storage.push(relative)


def _checksum(data: Mapping[str, Any]) -> str:
    return digest("sweep file", json.loads(json.dumps({key: data[key] for key in data if key != "checksum"})))


def _parse(content: bytes) -> SweepEntry:
    """Parse and check a file's content. ValueError, KeyError, TypeError or AttributeError where it is not such a
    file."""
    data = parse_object(content)
    if data.pop("checksum", None) != _checksum(data):
        raise ValueError("its checksum is not that of its entries")
    if data.pop("format") != FORMAT:
        raise ValueError("it is of another version")
    cells = [CellEntry(**cell) for cell in data.pop("cells")]
    found = SweepEntry(cells=cells, **data)
    texts = (found.name, found.identity, found.command, found.user, *(cell.label for cell in cells))
    if not all(isinstance(text, str) for text in texts) or not isinstance(found.created, int | float):
        raise ValueError("a name is not a text, or a time is not a number")
    if not 0 <= found.created <= MOST_TIME:
        raise ValueError(f"created = {quoted(found.created)}: a time in seconds since 1970")
    if not _texts(found.axes) or not (found.settings is None or isinstance(found.settings, dict)):
        raise ValueError("its axes are no list of fields, or its settings are no table")
    require_name(found.name)
    if not FILE.fullmatch(f"{found.identity}.json"):
        raise ValueError("its identity is no digest")
    for cell in cells:
        _check(cell)
    return found


def _texts(value: object) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _check(cell: CellEntry) -> None:
    """Raise ValueError for a cell from an untrusted file that would name paths, or that is not well-formed."""
    parents = () if cell.training is None else cell.training["parents"]
    named = (cell.cell, *(cell.digests or ()), *parents)
    if not all(isinstance(each, str) and DIGEST.fullmatch(each) for each in named):
        raise ValueError(f"{quoted(cell.label)}: something is called by no digest")
    if not isinstance(cell.params, dict) or not all(isinstance(name, str) for name in cell.params):
        raise ValueError(f"{cell.label}: its parameters are not a table with names")
    if not isinstance(cell.asked, int | float) or not 0 <= cell.asked <= MOST_TIME:
        raise ValueError(f"{cell.label}: the time at which it was asked for is no time")
    if not isinstance(cell.values, list | tuple) or not all(_texts(pair) and len(pair) == 2 for pair in cell.values):
        raise ValueError(f"{cell.label}: its values are not pairs of texts")
    if not all(type(each) is int and 0 <= each < MOST_IMAGES for each in (cell.images_seen, abs(cell.seed))):
        raise ValueError(f"{cell.label}: its images seen, or its seed, are impossible")
    if cell.training is None and not cell.digests and not isinstance(cell.weights, str):
        raise ValueError(f"{cell.label} has neither a training nor weights nor digests")
    if cell.training is not None or not cell.digests:
        Request.from_plain(cell.request)
    cell.parts()


SWEEP_LINE = b'{"sweep": '


def sweep_line(entry: SweepEntry) -> str:
    """A sweep as a line of a file of records."""
    data = {"format": FORMAT, **asdict(entry)}
    return json.dumps({"sweep": {**data, "checksum": _checksum(data)}}, allow_nan=False)


def checked_sweep(line: bytes, where: str) -> SweepEntry:
    """The inverse of `sweep_line`. RecordError for a line that is not a sweep."""
    try:
        return _parse(json.dumps(parse_object(line)["sweep"]).encode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"{where}: is not a sweep ({quoted(str(error))})") from error


def read_sweep(storage: Storage, name: str, identity: str, say: Callable[[str], None]) -> SweepEntry | None:
    """A sweep; None where it is missing, or, with a message, where it is damaged."""
    relative = f"{SWEEPS}/{name}/{identity}.json"
    path = storage.root / relative
    if storage.remote:
        storage.pull(relative)
    try:
        found = _parse(read_small(path, MOST_BYTES))
        found.must_be(name, identity)
        now = [cell for cell in found.cells if cell.current]
        if len(now) < len(found.cells):
            say(
                f"{path}: {len(found.cells) - len(now)} of its {len(found.cells)} cells have names from an earlier "
                "version of their components and no longer count; the sweep's command measures them again"
            )
        return replace(found, cells=now)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        say(f"{path} is damaged ({quoted(str(error))}); its records are kept, and the sweep's command writes it again")
        return None


def add_cells(
    storage: Storage, entry: SweepEntry, say: Callable[[str], None],
    check: Callable[[SweepEntry], None] = lambda there: None,
) -> None:  # fmt: skip
    """Write a sweep's file with its cells and those that other processes have written there.

    Args:
        check: function that raises an error where the file is of a sweep that this one must not be added to.
    """
    with leased(storage, f"sweep/{entry.identity}", "writing down a sweep"):
        there = read_sweep(storage, entry.name, entry.identity, say)
        if there is not None:
            check(there)
            known = {cell.cell for cell in entry.cells}
            others = [cell for cell in there.cells if cell.cell not in known]
            entry = replace(entry, cells=[*entry.cells, *others], created=there.created)
        entry.write(storage)


def names_of_sweeps(storage: Storage) -> list[str]:
    """Names of a storage's sweeps, sorted, without reading them."""
    folder = storage.root / SWEEPS
    if storage.remote:
        storage.pull(SWEEPS)
    names = sorted(each.name for each in folder.glob("*/")) if folder.is_dir() else []
    return [name for name in names if NAME.fullmatch(name)]


def read_sweeps(storage: Storage, say: Callable[[str], None], name: str | None = None) -> Iterator[SweepEntry]:
    """All sweeps of a storage, or those of one name, oldest first."""
    known = names_of_sweeps(storage)
    found: list[SweepEntry | None] = []
    for each in known if name is None else {name} & set(known):
        paths = [path for path in sorted((storage.root / SWEEPS / each).glob("*.json")) if FILE.fullmatch(path.name)]
        found.extend(read_sweep(storage, each, path.stem, say) for path in paths)
    yield from sorted((entry for entry in found if entry is not None), key=lambda entry: entry.created)
