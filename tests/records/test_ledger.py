"""The ledger on a real folder. Oracles: what was put, and the damage a test did."""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pforce.base.files import digest
from pforce.records.ledger import RECORDS, Ledger
from pforce.records.parts import Part
from pforce.records.record import FORMAT, NewerRecord, Record, RecordError, file_name, parse_content
from pforce.storage import Storage, StorageError

PART = Part("image_metric", {"metric": "frechet", "images": 500}, {"frechet": 1}, (digest("weights", 0),))


def record(value: float, *, part: Part = PART, finished: float = 2.0, **fields: object) -> Record:
    undefined = {} if math.isfinite(value) else {"fd/openmoji": "no image"}
    return Record.of(part, values={"fd/openmoji": value}, undefined=undefined, started=1.0, finished=finished, **fields)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "runs")


def path_of(storage: Storage, made: Record) -> Path:
    name, _ = file_name(made)
    return storage.root / RECORDS / name[:2] / name


def test_a_record_is_found_by_its_part(storage):
    """In another process too: another ledger."""
    made = record(5.0, cost={"seconds": 2.0}, notes=("a note",), provenance={"host": "here"})
    Ledger(storage).put(made)
    assert Ledger(storage).get(PART) == made
    assert Ledger(storage).get(replace(PART, canonical={"metric": "frechet", "images": 501})) is None
    assert Ledger(storage).find([PART.digest, "0" * 32]) == {PART.digest: made}


def test_a_value_that_is_undefined_says_why(storage):
    Ledger(storage).put(record(math.nan))
    assert b"NaN" not in path_of(storage, record(math.nan)).read_bytes()
    found = Ledger(storage).get(PART)
    assert found is not None
    assert found.values == {"fd/openmoji": None}
    assert found.undefined == {"fd/openmoji": "no image"}
    assert math.isnan(found.numbers()["fd/openmoji"])


def test_of_two_records_the_first_to_finish_counts(storage):
    """Whatever the order of writing, and on every machine: by time, then by content. Another value is said."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        made = [record(5.0, finished=3.0), record(6.0, finished=2.0), record(7.0, finished=2.0)]
        place = Storage.open(storage.root / f"order{order[0]}")
        for index in order:
            Ledger(place).put(made[index])
        said: list[str] = []
        ledger = Ledger(place, said.append)
        first = min(made[1:], key=lambda each: file_name(each)[0])
        assert ledger.get(PART) == first
        assert ledger.get(PART) == first
        assert len(said) == 1
        assert "is there 3 times, 2 with other values than the first" in said[0]
        assert len(ledger.all_of(PART.digest)) == 3


def _put(root: str, value: float) -> None:
    ledger = Ledger(Storage.open(root))
    for number in range(50):
        ledger.put(record(value, part=replace(PART, canonical={"images": number})))


@pytest.mark.process
def test_writers_at_the_same_time(storage):
    """Three processes put 50 parts each: every record is whole, and all three of each are there."""
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_put, [str(storage.root)] * 3, [1.0, 2.0, 3.0]))
    said: list[str] = []
    ledger = Ledger(storage, said.append)
    assert {len(names) for names in ledger.names().values()} == {3}
    assert len(list(ledger.all("image_metric"))) == 50
    assert all("is there 3 times" in line for line in said)
    assert not list(storage.root.rglob("*.tmp*"))


def test_what_is_forgotten_counts_no_more(storage):
    """Until it is measured again; taking the same record in again does not bring it back."""
    ledger = Ledger(storage)
    ledger.put(record(5.0))
    assert ledger.forget(PART.digest, "a wrong folder", who={"user": "me"}) == 1
    assert ledger.get(PART) is None
    again = Ledger(storage)
    assert again.get(PART) is None
    again.put(record(5.0))
    assert again.get(PART) is None
    (stone,) = again.all("tombstone")
    assert stone.notes == ("a wrong folder",)
    assert stone.provenance == {"user": "me"}
    assert path_of(storage, record(5.0)).exists()
    later = record(5.0, finished=9.0)
    assert again.put(later) == later
    assert Ledger(storage).get(PART) == later


def _cut(content: bytes) -> bytes:
    return content[:-9]


def _zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def _digit(content: bytes) -> bytes:
    return content.replace(b"5.0", b"4.0")


def _version(content: bytes) -> bytes:
    return content.replace(b'"frechet": 1', b'"frechet": 2')


@pytest.mark.parametrize(
    "harm", [_cut, _zeroed, _digit, _version, lambda content: content + b" ", lambda content: content * 2,
             lambda content: b"", lambda content: b"[" * 100_000]
)  # fmt: skip
def test_a_damaged_record_counts_as_not_there(storage, harm):
    """It is said once, with its path, and its part can be measured again."""
    made = record(5.0)
    Ledger(storage).put(made)
    path = path_of(storage, made)
    assert harm(path.read_bytes()) != path.read_bytes()
    path.write_bytes(harm(path.read_bytes()))
    said: list[str] = []
    ledger = Ledger(storage, said.append)
    assert ledger.get(PART) is None
    assert ledger.get(PART) is None
    assert len(said) == 1
    assert str(path) in said[0]
    later = record(5.0, finished=3.0)
    assert ledger.put(later) == later
    assert Ledger(storage).get(PART) == later


def test_a_renamed_record_counts_as_not_there(storage):
    """One of another digest, and one of its own under another content's name."""
    made, other = record(5.0), record(6.0, part=replace(PART, canonical={"images": 2}))
    Ledger(storage).put(made)
    path = path_of(storage, made)
    for target in (path_of(storage, other), path.with_name(f"{made.digest}.{'0' * 32}.json")):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    said: list[str] = []
    ledger = Ledger(storage, said.append)
    assert ledger.get(other.digest) is None
    assert ledger.get(PART) == made
    assert len(said) == 2


def test_what_is_not_a_file_or_far_too_large_is_not_read(storage):
    """A folder, a pipe that nobody writes, and a file of 1 GB of zeros in a record's place."""
    made = record(5.0)
    path = path_of(storage, made)
    path.parent.mkdir(parents=True)
    for put in (
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 30),
    ):
        put()
        said: list[str] = []
        assert Ledger(storage, said.append).get(PART) is None
        assert len(said) == 1
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_newer_record_is_not_guessed_at(storage):
    """Its version is named, and what reads it."""
    made = record(5.0)
    name, content = file_name(made)
    newer = content.replace(b'"format": %d' % FORMAT, b'"format": %d' % (FORMAT + 1))
    assert newer != content
    path = storage.root / RECORDS / name[:2] / f"{made.digest}.{digest_of(newer)}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(newer)
    with pytest.raises(NewerRecord, match=rf"format {FORMAT + 1}.*a newer one made it"):
        Ledger(storage).get(PART)


def digest_of(content: bytes) -> str:
    from pforce.base.files import content_digest

    return content_digest(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "paper"}, "kind"),
        ({"values": [1]}, "values is a table"),
        ({"values": {"a": None}}, "null without a reason"),
        ({"cost": {"seconds": -1}}, "0 or more"),
        ({"cost": {"seconds": True}}, "0 or more"),
        ({"started": "yesterday"}, "a time in seconds"),
        ({"started": 10**17}, "a time in seconds since 1970"),
        ({"finished": -1.0}, "a time in seconds since 1970"),
        ({"files": {"a": "../../etc/passwd"}}, "named by their sha256"),
        ({"notes": "one"}, "notes are texts"),
        ({"provenance": {"host": 3}}, "a table of texts"),
        ({"surprise": 1}, "unknown fields 'surprise'"),
        ({"identity": {"canonical": {}, "versions": {}, "parents": ["x"]}}, "parents are digests"),
        ({"identity": {"canonical": {}, "versions": {}, "parents": []}}, "does not match its name"),
        ({"digest": "0" * 32}, "does not match its name"),
        ({"values": {"a": json.loads("[" * 60 + "]" * 60)}}, "deep"),
    ],
)
def test_what_is_not_well_formed_is_refused(change, message):
    """Every field of a stranger's record; the digest is computed again."""
    plain = json.loads(record(5.0).to_bytes())
    assert parse_content(json.dumps(plain).encode(), "a line") == record(5.0)
    with pytest.raises(RecordError, match=message):
        parse_content(json.dumps(plain | change).encode(), "a line")


@pytest.mark.parametrize("text", [b"NaN", b"{}", b"[]", b'{"a":', b'"x"', b'{"values": Infinity}', b"\xff"])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(RecordError):
        parse_content(text, "a line")


def test_a_record_whose_parents_are_missing_is_kept(storage):
    """What it was made from may be in another storage: it is a record all the same."""
    made = record(5.0)
    assert made.identity["parents"]
    Ledger(storage).put(made)
    assert list(Ledger(storage).all()) == [made]


def test_files_of_a_record(storage):
    """Under their hash; a missing or damaged one counts as not there, and is said."""
    content, sha256 = b"picture", "9" * 64
    from hashlib import sha256 as hashed

    sha256 = hashed(content).hexdigest()
    said: list[str] = []
    ledger = Ledger(storage, said.append)
    ledger.put_file(content, sha256)
    path = ledger.file(sha256)
    assert path is not None
    assert path.read_bytes() == content
    path.write_bytes(b"Picture")
    assert Ledger(storage, said.append).file(sha256) is None
    path.unlink()
    assert Ledger(storage, said.append).file(sha256) is None
    assert ["damaged" in said[0], "is not there" in said[1]] == [True, True]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_records_that_may_not_be_read(storage):
    made = record(5.0)
    Ledger(storage).put(made)
    path = path_of(storage, made)
    path.chmod(0)
    with pytest.raises(StorageError, match="may not be read"):
        Ledger(storage).get(PART)
