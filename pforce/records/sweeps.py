"""What a sweep is made of, kept beside its results: so a storage can be read as tables without planning anything.

`sweeps/NAME/IDENTITY.json`: its cells, each with its label, its parameters, and what names its parts. It holds no
number: those are records. It is written whole whenever it grows, and carries a checksum.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pforce.base.files import digest, read_small, write_json
from pforce.records.parts import CellParts, Part, Request
from pforce.records.record import RecordError
from pforce.storage import Storage

SWEEPS = "sweeps"
"""Folder below a storage's root."""
FORMAT = 1
MOST_BYTES = 256 << 20
MOST_IMAGES = 1 << 53
NAME = re.compile(r"[\w.-]{1,200}")
DIGEST = re.compile(r"[0-9a-f]{32}")
FILE = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True)
class CellEntry:
    """A cell of a sweep."""

    label: str
    cell: str
    """Digest of the cell."""
    params: Mapping[str, Any]
    """Every field by its dotted path."""
    request: Mapping[str, Any]
    """The request, as `Request.plain` writes it."""
    seed: int = 0
    training: Mapping[str, Any] | None = None
    """Identity of the training; None where nothing was trained."""
    images_seen: int = 0
    weights: str | None = None
    """Hash of the tensors, where they are known before: of a model that was given."""
    digests: Sequence[str] | None = None
    """What its records are called, where no model is: of images that were given."""

    @classmethod
    def of(cls, label: str, parts: CellParts, params: Mapping[str, Any], seed: int) -> CellEntry:
        """The entry of a cell that is trained."""
        return cls(
            label, parts.digest, params, parts.request.plain(), seed, parts.training.identity, parts.images_seen
        )  # fmt: skip

    @property
    def current(self) -> bool:
        """Whether it is called by what it is made of: not where a version of that has been raised since."""
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
    """A sweep."""

    name: str
    identity: str
    cells: Sequence[CellEntry]
    created: float = field(default_factory=time.time)
    command: str = ""
    user: str = ""

    def must_be(self, name: str, identity: str) -> None:
        """ValueError for a sweep of another name."""
        if (self.name, self.identity) != (name, identity):
            raise ValueError("it is of another sweep")

    def write(self, storage: Storage) -> None:
        """Keep it; one that is there under the same name and identity is replaced."""
        data = {"format": FORMAT, **asdict(self)}
        relative = f"{SWEEPS}/{self.name}/{self.identity}.json"
        write_json(storage.root / relative, {**data, "checksum": _checksum(data)})
        storage.push(relative)


def _checksum(data: Mapping[str, Any]) -> str:
    return digest("sweep file", json.loads(json.dumps({key: data[key] for key in data if key != "checksum"})))


def _parse(content: bytes) -> SweepEntry:
    """ValueError, KeyError, TypeError or AttributeError for what is no such file. Cells are named anew."""
    data = json.loads(content)
    if data.pop("checksum", None) != _checksum(data):
        raise ValueError("its checksum is not that of its entries")
    if data.pop("format") != FORMAT:
        raise ValueError("it is of another version")
    cells = [CellEntry(**cell) for cell in data.pop("cells")]
    found = SweepEntry(cells=cells, **data)
    texts = (found.name, found.identity, found.command, found.user, *(cell.label for cell in cells))
    if not all(isinstance(text, str) for text in texts) or not isinstance(found.created, int | float):
        raise ValueError("a name is no text, or a time no number")
    if not NAME.fullmatch(found.name) or set(found.name) <= {"."} or not FILE.fullmatch(f"{found.identity}.json"):
        raise ValueError("it has no name that a sweep can have")
    for cell in cells:
        _check(cell)
    return found


def _check(cell: CellEntry) -> None:
    """ValueError for a cell of a stranger's file that would name paths, or cannot be what it says."""
    parents = () if cell.training is None else cell.training["parents"]
    named = (cell.cell, *(cell.digests or ()), *parents)
    if not all(isinstance(each, str) and DIGEST.fullmatch(each) for each in named):
        raise ValueError(f"{cell.label}: something is called by no digest")
    if not isinstance(cell.params, dict) or not all(isinstance(name, str) for name in cell.params):
        raise ValueError(f"{cell.label}: its parameters have no names")
    if not all(type(each) is int and 0 <= each < MOST_IMAGES for each in (cell.images_seen, abs(cell.seed))):
        raise ValueError(f"{cell.label}: images seen, or a seed, that no training can have")
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
    """The inverse of `sweep_line`. RecordError for what is none."""
    try:
        return _parse(json.dumps(json.loads(line)["sweep"]).encode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"{where}: is no sweep ({error})") from error


def read_sweep(storage: Storage, name: str, identity: str, say: Callable[[str], None]) -> SweepEntry | None:
    """One sweep; None where it is not there, or, having said so, damaged."""
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
                f"{path}: {len(found.cells) - len(now)} of its {len(found.cells)} cells are named by an earlier "
                "version of what they are made of, and do not count any more; the sweep's command measures them again"
            )
        return replace(found, cells=now)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        say(f"{path} is damaged ({error}); its records stay, and the sweep's command writes it again")
        return None


def read_sweeps(storage: Storage, say: Callable[[str], None], name: str | None = None) -> Iterator[SweepEntry]:
    """All sweeps of a storage, or those of a name, the oldest first."""
    folder = storage.root / SWEEPS
    if storage.remote:
        storage.pull(SWEEPS)
    names = [name] if name is not None else sorted(each.name for each in folder.glob("*/")) if folder.is_dir() else []
    found: list[SweepEntry | None] = []
    for each in names:
        if NAME.fullmatch(each):
            paths = [path for path in sorted((folder / each).glob("*.json")) if FILE.fullmatch(path.name)]
            found.extend(read_sweep(storage, each, path.stem, say) for path in paths)
    yield from sorted((entry for entry in found if entry is not None), key=lambda entry: entry.created)
