"""Packed records. Oracle: the same records in files of their own, in another storage that is never packed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pforce.base.console import DONE
from pforce.cli import _run
from pforce.records import packing
from pforce.records.ledger import Ledger
from pforce.records.packing import Amount, Packing, file_system, pack
from pforce.records.packs import PACKS
from pforce.records.parts import Part
from pforce.records.record import Record
from pforce.storage import Storage
from pforce.storage.identity import identity_of
from tests.faults.write_points import in_child, point_of, watch
from tests.support.buckets import KEYS


def record(number: int, value: float = 1.0, finished: float = 2.0) -> Record:
    part = Part("image_metric", {"images": number}, {"frechet": 1}, ())
    return Record.of(part, values={"fd/openmoji": value}, started=1.0, finished=finished)


def view(place: Storage, ledger: Ledger | None = None) -> dict[str, Any]:
    """All that a reader finds, in its order, and all that is said."""
    said: list[str] = []
    found = ledger or Ledger(place, said.append)
    return {
        "counts": [each.to_bytes() for each in found.all()],
        "stones": [(each.digest, dict(each.identity)) for each in found.all("tombstone")],
        "all": {digest: [each.to_bytes() for each in found.all_of(digest)] for digest in found.names()},
        "said": said,
    }


def quickly(place: Storage, **options: Any) -> Packing:
    def said(line: str) -> None:
        raise AssertionError(line)

    return pack(place, said, older_than=-1e9, settle=0, **options)


def fill(place: Storage, count: int = 6) -> None:
    """Records, one of them twice with other numbers, and one forgotten."""
    ledger = Ledger(place)
    for number in range(count):
        ledger.put(record(number))
    ledger.put(record(0, 7.0, finished=1.5))
    ledger.forget(record(1).digest, "a test")


def copy(place: Storage, root: Path) -> Storage:
    shutil.copytree(place.root, root)
    return Storage.open(root)


@pytest.fixture
def loose(tmp_path: Path) -> Storage:
    place = Storage.open(tmp_path / "loose")
    fill(place)
    return place


# --- what is read ----------------------------------------------------------------------------------------------------


def test_a_packed_storage_reads_as_before(loose, tmp_path):
    """Packed, and with new records beside the pack; a second call changes nothing."""
    packed = copy(loose, tmp_path / "packed")
    done = quickly(packed)
    assert (done.records, done.before.loose, done.after) == (8, 8, Amount(0, 1, done.after.bytes))
    assert view(packed) == view(loose)
    again = quickly(packed)
    assert (again.records, again.merged, again.after) == (0, 0, done.after)
    for place in (packed, loose):
        Ledger(place).put(record(0, 9.0, finished=1.2))
        Ledger(place).put(record(50))
        Ledger(place).put(record(3))  # is packed: not written again
    assert Amount.of(packed).loose == 2
    assert view(packed) == view(loose)


def test_a_stone_laid_on_a_packed_record_counts_and_one_packed_later_too(loose):
    quickly(loose)
    assert Ledger(loose).forget(record(2).digest, "wrong") == 1
    for _ in range(2):
        assert Ledger(loose).get(record(2).digest) is None
        assert Ledger(loose).put(record(2, finished=9.0)) == record(2, finished=9.0)
        Ledger(loose).forget(record(2).digest, "wrong again")
        quickly(loose)


def test_young_and_damaged_records_stay(loose, capsys):
    now = time.time()
    Ledger(loose).put(record(90, finished=now))
    path = next(loose.root.glob(f"records/*/{record(5).digest}.*"))
    path.write_bytes(b"{}")
    before = Amount.of(loose)
    assert _run(["records", "pack", "--storage", str(loose.root), "--dry-run"]) == DONE
    assert Amount.of(loose) == before
    assert not (loose.root / PACKS).exists()
    printed = capsys.readouterr().out
    assert "6 records would be packed" in printed
    assert "2 records younger than 60 minutes" in printed  # the tombstone, too
    assert "1 file that this version cannot read as a record" in printed
    assert _run(["records", "pack", "--storage", str(loose.root)]) == DONE
    assert "after: 3 single records, 1 pack" in capsys.readouterr().out
    assert path.read_bytes() == b"{}"
    assert Ledger(loose).get(record(90).digest) == record(90, finished=now)


def test_a_list_of_before_finds_what_was_packed_and_merged_since(loose):
    """A ledger that listed the files before they were packed, one that listed packs before they were merged, and one
    that looks for what it has listed as missing."""
    listed, looking = Ledger(loose), Ledger(loose)
    listed.names()
    late = record(60)
    looking.names()
    Ledger(loose).put(late)
    quickly(loose)
    looking.look_again([Part(late.kind, late.identity["canonical"], late.identity["versions"])])
    assert looking.get(late.digest) == late
    assert listed.get(record(4).digest) == record(4)
    old, expected = Ledger(loose), view(loose)
    old.names()
    for number in range(packing.MANY - 1):
        Ledger(loose).put(record(100 + number))
        quickly(loose)
    assert Amount.of(loose).packs == 1
    assert view(loose, old) == expected | {"said": []}


def test_packs_are_cut_and_merged_by_their_size(loose, tmp_path, monkeypatch):
    expected = view(loose)
    monkeypatch.setattr("pforce.records.packs.MOST_RECORDS", 3)
    assert quickly(loose).after.packs == 3
    assert view(loose) == expected
    monkeypatch.undo()
    monkeypatch.setattr(packing, "MANY", 3)
    assert quickly(loose).merged == 3
    assert Amount.of(loose).packs == 1
    assert view(loose) == expected


def test_a_packed_storage_is_refused_by_versions_without_packs(loose, tmp_path):
    """They know format 1 of `storage.json` only. The identity stays, and a copy has it."""
    before = identity_of(loose)
    quickly(loose)
    assert json.loads((loose.root / "storage.json").read_text()) == {"format": 2, "id": before}
    assert identity_of(copy(loose, tmp_path / "copy")) == before


def test_a_pause_where_other_machines_may_see_a_folder_as_it_was(loose, monkeypatch):
    assert file_system(Path("/proc/self")) == "proc"
    shown: list[str] = []
    monkeypatch.setattr(packing, "LOCAL", ())
    monkeypatch.setattr(packing, "SETTLE_SECONDS", 0.05)

    def bar(what: str, total: int):
        shown.append(what)
        return packing.nullcontext(lambda done: None)

    pack(loose, print, older_than=-1e9, bar=bar)
    assert [what.split()[0] for what in shown] == ["reading", "waiting", "removing"]
    assert Amount.of(loose).loose == 0


# --- at any moment ---------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """Raised right before a write: what comes after it does not happen."""


class Stopper:
    """Stops the next work right before one of its writes; the hook that does so stays for the life of the process."""

    def __init__(self, root: Path) -> None:
        self.left = 0
        watch(root, self.seen)

    def seen(self, event: str, path: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped


@pytest.fixture(scope="module")
def stopper(tmp_path_factory) -> tuple[Path, Stopper]:
    root = tmp_path_factory.mktemp("histories")
    return root, Stopper(root)


STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 4), st.integers(1, 3)),
    st.tuples(st.just("forget"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("pack"), st.just(0), st.just(0)),
    st.tuples(st.just("stop"), st.integers(1, 30), st.just(0)),
    st.tuples(st.just("list"), st.just(0), st.just(0)),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEP, min_size=4, max_size=14))
def test_histories(stopper, steps):
    """Records put and forgotten, packed, packed and stopped at a write, read by whoever listed long before: at each
    moment what a storage without packs says."""
    root, stop = stopper
    for name in ("plain", "packed"):
        shutil.rmtree(root / name, ignore_errors=True)
    plain, packed = (Storage.open(root / name) for name in ("plain", "packed"))
    readers: list[tuple[Ledger, dict[str, Any]]] = []
    many, packing.MANY = packing.MANY, 3
    try:
        for word, number, value in steps:
            if word == "put":
                for place in (plain, packed):
                    Ledger(place).put(record(number, float(value), finished=float(value)))
            elif word == "forget":
                stones = Ledger(plain)
                stones.forget(record(number).digest, "a test")
                for stone in stones.all("tombstone"):  # the same in both, with its time
                    Ledger(packed).put(stone)
            elif word == "list":
                reader = Ledger(packed)
                reader.names()
                readers.append((reader, view(plain)))
            else:
                stop.left = number if word == "stop" else 0
                with suppress(Stopped):
                    quickly(packed)
                stop.left = 0
            assert view(packed) == view(plain)
        for reader, then in readers:
            assert view(packed, reader) == then | {"said": []}
        quickly(packed)
        assert view(packed) == view(plain)
        assert Amount.of(packed).loose == 0
    finally:
        packing.MANY = many


@pytest.mark.drill
def test_killed_at_any_write(loose, tmp_path, monkeypatch):
    """SIGKILL right before each write of a call that packs, merges and removes: nothing changes for a reader, and the
    next call ends as an undisturbed one."""
    monkeypatch.setattr(packing, "MANY", 3)
    start = tmp_path / "start"
    quickly(copy(loose, start))
    for number in (70, 71):
        Ledger(Storage.open(start)).put(record(number))
        if number == 70:
            quickly(Storage.open(start))
    expected, out = view(Storage.open(start)), tmp_path / "out.json"

    def packed(root: Path, stop: int) -> list[str]:
        listed: list[str] = []

        def seen(event: str, path: str) -> None:
            listed.append(point_of(event, path))
            if len(listed) == stop:
                os.kill(os.getpid(), signal.SIGKILL)

        watch(root, seen)
        quickly(Storage.open(root))
        return listed

    whole = copy(Storage.open(start), tmp_path / "whole")
    assert in_child(lambda: packed(whole.root, 0), out) == 0
    points = json.loads(out.read_text())
    files = sorted(path.relative_to(whole.root) for path in whole.root.rglob("*") if path.is_file())
    assert [path.suffix for path in files] == [".pack1", ".json"]
    assert any("os.remove" in point for point in points)
    for number in range(1, len(points) + 1):
        place = copy(Storage.open(start), tmp_path / str(number))
        assert in_child(lambda root=place.root, number=number: packed(root, number), out) == signal.SIGKILL
        assert view(place) == expected, points[number - 1]
        quickly(place)
        assert view(place) == expected, points[number - 1]
        left = [path for path in place.root.rglob("*") if path.is_file() and ".tmp_" not in str(path)]
        assert sorted(path.relative_to(place.root) for path in left) == files, points[number - 1]
        shutil.rmtree(place.root)


def _packs(root: str, until: float) -> None:
    while time.time() < until:
        quickly(Storage.open(root))


def _puts(root: str, first: int, until: float) -> int:
    number = first
    while time.time() < until:
        assert Ledger(Storage.open(root)).put(record(number)) == record(number)
        number += 1
    return number


@pytest.mark.process
def test_packers_writers_and_readers_at_the_same_time(tmp_path, monkeypatch):
    """Two processes put records, two pack and merge without pause: whoever reads finds all that was there when it
    listed, and at the end everything is there once."""
    monkeypatch.setattr(packing, "MANY", 2)
    place, until = Storage.open(tmp_path), time.time() + 1.5
    with ProcessPoolExecutor(4, mp_context=_forked()) as pool:
        packs = [pool.submit(_packs, str(tmp_path), until) for _ in range(2)]
        puts = [pool.submit(_puts, str(tmp_path), first, until) for first in (0, 100_000)]
        seen: dict[str, int] = {}
        while time.time() < until:
            ledger = Ledger(place)
            listed = set(ledger.names())
            assert listed >= seen.keys()
            assert all(ledger.get(digest) for digest in listed)
            seen = dict.fromkeys(listed, 1)
        ends = [each.result() for each in puts]
        for each in packs:
            each.result()
    expected = {record(n).digest for first, end in zip((0, 100_000), ends, strict=True) for n in range(first, end)}
    quickly(place)
    assert set(Ledger(place).names()) == expected
    assert {each.digest for each in Ledger(place).all()} == expected
    assert len(expected) > 20
    assert Amount.of(place).loose == 0


def _forked() -> Any:
    import multiprocessing

    return multiprocessing.get_context("fork")


# --- a bucket --------------------------------------------------------------------------------------------------------


@pytest.fixture
def machines(server, monkeypatch, tmp_path) -> Callable[[str], Storage]:
    """One bucket as machines of these names see it."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)

    def machine(name: str) -> Storage:
        monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / name))
        return Storage.open(server.uri(f"bucket/{tmp_path.name}"))

    return machine


def test_a_bucket_is_packed(machines, server, loose, tmp_path):
    """By a machine that has no copy of it, while another one has listed it; a third one reads it afterwards."""
    a, b, c, d = (machines(name) for name in "abcd")
    fill(a)
    expected = view(a)
    listed, stale = Ledger(d), Ledger(a)
    listed.names(), stale.names()
    done = quickly(b)
    assert (done.records, done.after.loose, done.after.packs) == (8, 0, 1)
    kept = {key.rpartition("/")[2][32:] for key in server.keys("bucket", f"{tmp_path.name}/records")}
    assert kept == {".pack1"}
    assert view(c) == expected
    assert view(d, listed) == expected | {"said": []}
    assert view(a, stale) == expected | {"said": []}
    (copied,) = c.root.glob(f"{PACKS}/*")
    content = copied.read_bytes()
    for harm in (content[:-1], content[:-9] + b"x" + content[-8:], content.replace(b"pack of", b"pack 0f")):
        copied.write_bytes(harm)  # damaged on one machine: fetched again
        assert view(c) == expected
        assert copied.read_bytes() == content
    for number in range(packing.MANY - 1):
        Ledger(a).put(record(100 + number))
        quickly(b)
    assert Amount.of(c).packs == 1
    assert listed.get(record(5).digest) == record(5)
    assert view(c, Ledger(c)) == view(a, Ledger(a))
