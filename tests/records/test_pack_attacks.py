"""Attacks on packs of records, and damage to them. Oracle: what was packed, or that nothing is believed."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from pforce.base.files import content_digest
from pforce.records.ledger import Ledger
from pforce.records.packing import pack
from pforce.records.packs import MOST_RECORDS
from pforce.records.parts import Part
from pforce.records.record import NewerRecord, Record, file_name
from pforce.storage import Storage


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "runs")


def packed(place: Storage, count: int = 5) -> tuple[list[Record], Path]:
    """Records and the pack that holds them all."""
    records = [Record.of(Part("image_metric", {"n": n}), values={"fd/x": n / 7}, finished=2.0) for n in range(count)]
    for record in records:
        Ledger(place).put(record)
    pack(place, print, older_than=0, settle=0)
    (path,) = place.root.glob("records/packs/*")
    return records, path


def read(place: Storage, records: list[Record]) -> tuple[list[Record], list[str]]:
    """The records that are missing, and all that is said; twice, as what is said is said once."""
    said: list[str] = []
    ledger = Ledger(place, said.append)
    missing = [record for record in records if ledger.get(record.digest) != record]
    assert [record for record in records if ledger.get(record.digest) != record] == missing
    return missing, said


def test_each_byte_of_a_pack_that_is_changed_costs_one_record_at_most(place):
    """In the first line, the index or a record; it is said, with the pack's path, and the others are found. What was
    lost can be put again."""
    records, path = packed(place)
    content = path.read_bytes()
    lost = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        missing, said = read(place, records)
        assert len(missing) <= 1, at
        assert len(said) == 1, at
        assert str(path) in said[0]
        lost += len(missing)
    assert lost > 100
    path.write_bytes(content[:-9])
    missing, said = read(place, records)
    assert (len(missing), len(said)) == (1, 1)
    again = dataclasses.replace(missing[0], finished=3.0)
    assert Ledger(place).put(again) == again
    pack(place, print, older_than=0, settle=0)
    assert path.exists(), "a damaged pack stays as it is"
    assert Ledger(place).get(again.digest) == again


@pytest.mark.parametrize("harm", [
    lambda content: b"", lambda content: content[:9], lambda content: content[:200], lambda content: content[100:],
    lambda content: bytes(len(content)), lambda content: content + b"{}", lambda content: content * 2,
    lambda content: content.replace(b"0000005", b"9999999", 1),
    lambda content: content.replace(b".json ", b"/../x ", 1),
    lambda content: content.replace(b"0000005", b"0000004", 1),
])  # fmt: skip
def test_a_pack_that_is_cut_or_lies_is_said_in_one_line(place, harm):
    records, path = packed(place)
    path.write_bytes(harm(path.read_bytes()))
    missing, said = read(place, records)
    assert missing or said
    assert all(str(path) in line and "\n" not in line for line in said)


def forged(place: Storage, lines: bytes, count: int, records: bytes) -> Path:
    """A pack whose name fits its index, whatever that says."""
    head = b"pack of %07d records\n" % count + lines
    path = place.root / "records" / "packs" / f"{content_digest(head)}.pack1"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + records)
    return path


def test_a_forged_index_gives_no_other_record(place):
    """Sizes that overlap or reach beyond the file, another record's content under a name, a name given twice, a record
    that was changed and its hash made anew: nothing but whole records under their own names counts."""
    a, b = (Record.of(Part("image_metric", {"n": n}), values={"fd/x": 1.0}, finished=2.0) for n in range(2))
    (name, content), (other, _) = file_name(a), file_name(b)
    changed = content.replace(b'"fd/x": 1.0', b'"fd/x": 0.1')
    new = f"{b.digest}.{content_digest(changed)}.json"  # of another part than it says

    def line(name: str, size: int) -> bytes:
        return f"{name} {size:07d}\n".encode()

    for lines, count, body in (
        (line(name, 9_999_999), 1, content), (line(name, len(content) - 1), 1, content),
        (line(name, len(content)) + line(other, len(content)), 2, content + content),
        (2 * line(name, len(content)), 2, 2 * content), (line(new, len(changed)), 1, changed), (b"", 0, b""),
        (line("../" * 21 + "x.json", len(content)), 1, content), (b"", 9_999_999, b""),
    ):  # fmt: skip
        path = forged(place, lines, count, body)
        said: list[str] = []
        ledger = Ledger(place, said.append)
        assert all(record == a for record in ledger.all())
        assert len(said) == 1
        assert str(path) in said[0]
        path.unlink()


def test_a_pack_sizes_no_allocation_and_is_searched_once(place):
    """Far too large, beginnings without ends, ends without beginnings, a folder, a pipe: none is read for ever."""
    path = forged(place, b"", 1, b"")
    for put in (
        lambda: os.truncate(path, 1 << 33), lambda: path.write_bytes(b"{\n" * (20 << 20)),
        lambda: path.write_bytes(b"\n}" * (10 << 20)), lambda: (path.unlink(), path.mkdir()),
        lambda: (path.rmdir(), os.mkfifo(path)),
    ):  # fmt: skip
        put()
        said: list[str] = []
        assert list(Ledger(place, said.append).all()) == []
        assert len(said) == 1


def test_a_search_of_a_damaged_pack_ends(place):
    """After twice as many records as a pack may have: what comes then is not looked at."""
    records, path = packed(place, 2)
    content = path.read_bytes()
    middle = content.index(b"\n}\n{") + 3
    for count, missing in ((1000, 0), (2 * MOST_RECORDS, 1)):
        path.write_bytes(content[:middle] + b"{\n}\n" * count + content[middle:])
        assert len(read(place, records)[0]) == missing


def test_a_damaged_pack_is_not_removed(place, tmp_path):
    """Also where a larger pack has all that is left of it: another process may see more of it."""
    records, path = packed(place)
    larger = packed(Storage.open(tmp_path / "larger"), 6)[1]
    for damaged in (True, False):
        content = path.read_bytes()
        if damaged:
            path.write_bytes(content[:-9])
        (path.parent / larger.name).write_bytes(larger.read_bytes())
        pack(place, print, older_than=0, settle=0)
        assert path.exists() == damaged
        path.write_bytes(content)
    assert read(place, records)[0] == []


def test_a_pack_of_a_newer_version_is_not_guessed_at(place):
    records, path = packed(place)
    path.rename(path.with_suffix(".pack2"))
    with pytest.raises(NewerRecord, match=r"format 2, this pforce reads 1: a newer one made it"):
        Ledger(place).get(records[0].digest)
