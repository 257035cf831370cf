"""Looks at a table's claims, kept beside its sweep, so that whoever adds seeds after a look knows what was seen.

`sweeps/NAME/looks/NUMBER.json` is one look: which pairs of cells each claim compared, and how many seeds were planned.
A look is never changed. Its number gives the order, which no clock does; it is created exclusively, so of two commands
that look at once one comes second. What others may have written there is data: a damaged file is reported and left out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pforce.base.files import digest
from pforce.base.foreign import expect, parse_object, quoted
from pforce.records.record import MOST_TIME
from pforce.records.sweeps import DIGEST, SWEEPS, require_name
from pforce.storage import Storage

LOOKS = "looks"
"""Folder of looks, in the folder of a sweep."""
FORMAT = 1
MOST_BYTES = 1 << 20
MOST_LOOKS = 999
"""Most looks at one table."""
MOST_CLAIMS = 64
"""Most claims of a look's file."""
MOST_SEEDS = 1000
"""Most seeds that are planned, or that a claim compares."""
MOST_NAME = 200
FILE = re.compile(r"[0-9]{3}\.json")
Say = Callable[[str], None]


def pair_of(metrics: Sequence[str], cells: Sequence[str]) -> str:
    """Name of what a claim compares at one seed: two cells (their digests) by one metric, or by one each. The order of
    the two does not matter, as neither does for whether they differ."""
    return digest("compared pair", sorted([metric, cell] for metric, cell in zip(metrics, cells, strict=True)))


@dataclass(frozen=True)
class Look:
    """A look at the claims of a table."""

    planned: int
    """Number of seeds that were planned for the table."""
    claims: tuple[frozenset[str], ...]
    """Pairs that each claim compared, one per common seed, as `pair_of` names them."""
    metric: str = ""
    """Metric of the claims, or several, for people who read the file."""
    time: float = field(default_factory=time.time)
    """Time of the look, in seconds since 1970, for people who read the file."""

    @property
    def seeds(self) -> int:
        """Number of common seeds: the largest of its claims."""
        return max(map(len, self.claims), default=0)

    def shows_more_than(self, looks: Sequence[Look]) -> bool:
        """Whether it compares anything that the earlier looks have not."""
        seen = {claim for look in looks for claim in look.claims}
        return any(claim not in seen for claim in self.claims)

    def to_bytes(self) -> bytes:
        """The file's content."""
        claims = [sorted(claim) for claim in self.claims]
        data = {"format": FORMAT, "planned": self.planned, "seeds": self.seeds, "metric": self.metric[:MOST_NAME],
                "time": self.time, "claims": claims}  # fmt: skip
        return json.dumps({**data, "checksum": digest("look", data)}, indent=1).encode() + b"\n"


def _parse(content: bytes) -> Look:
    """The look of a file's content. ValueError, KeyError or TypeError where it is none."""
    data = parse_object(content)
    expect(data.pop("checksum", None) == digest("look", data), "its checksum is not that of its entries")
    expect(data["format"] == FORMAT, "it is of another version")
    planned, claims, when = data["planned"], data["claims"], data["time"]
    expect(type(planned) is int and 0 < planned <= MOST_SEEDS, "its planned seeds are no number of seeds")
    expect(isinstance(when, int | float) and 0 <= when <= MOST_TIME, "its time is no time")
    expect(isinstance(claims, list) and 0 < len(claims) <= MOST_CLAIMS, "it has no list of claims")
    expect(isinstance(data["metric"], str) and len(data["metric"]) <= MOST_NAME, "its metric has no name")
    for claim in claims:
        expect(isinstance(claim, list) and 0 < len(claim) <= MOST_SEEDS, "a claim compares no list of pairs")
        expect(all(isinstance(pair, str) and DIGEST.fullmatch(pair) for pair in claim), "a pair is called by no digest")
    return Look(planned, tuple(map(frozenset, claims)), data["metric"], float(when))


def _folder(name: str) -> str:
    require_name(name)
    return f"{SWEEPS}/{name}/{LOOKS}"


def _read(storage: Storage, name: str, say: Say) -> tuple[list[Look], int]:
    """The looks at a table, and the first number that no file has."""
    folder, found, last = _folder(name), [], 0
    for file in sorted(each for each in storage.names(folder) if FILE.fullmatch(each)):
        last = int(file[:3])
        content = storage.content(f"{folder}/{file}", MOST_BYTES)
        try:
            expect(content is not None, "it cannot be read, or is too large")
            found.append(_parse(content or b""))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            say(
                f"{storage.root / folder / file} is damaged ({quoted(str(error))}): this look at the claims of {name} "
                "is not counted, so their p may be too small"
            )
    return found, last + 1


def read_looks(storage: Storage, name: str, say: Say) -> list[Look]:
    """The looks at a table's claims so far, in their order. StorageError where a bucket does not answer.

    Args:
        name: name of the table's sweep.
        say: function that reports a damaged file, which is left out.
    """
    return _read(storage, name, say)[0]


def note_look(storage: Storage, name: str, look: Look, say: Say) -> list[Look]:
    """Record a look before its claims are shown, unless it shows no more than earlier ones; return all looks in order.

    Raises:
        StorageError: a bucket does not answer.
        OSError: the folder cannot be written.
    """
    while True:
        there, number = _read(storage, name, say)
        if not look.claims or not look.shows_more_than(there):
            return there
        if number > MOST_LOOKS or max(look.planned, look.seeds) > MOST_SEEDS:
            say(
                f"{name}: a look at more than {MOST_SEEDS} seeds, or after more than {MOST_LOOKS} others, is not "
                "recorded; later ones will not count it"
            )
            return [*there, look]
        if storage.create(f"{_folder(name)}/{number:03}.json", look.to_bytes()):
            return [*there, look]
