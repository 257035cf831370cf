"""What packing saves: a storage of 2,000 finished cells with each record in a file of its own, and packed.

In turn, each time in a new process (its imports are not counted): seconds of a core to list the records, to plan the
sweep, all of which is finished, and to read its rows as a table. With `--bucket`: seconds to list the records and to
read them all from an S3 server on this machine (moto), by a machine that has no copies.

    python -m tests.benchmarks.pack [--cells 2000] [--rounds 5]
    python -m tests.benchmarks.pack --bucket --cells 50 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pforce import results
from pforce.records.ledger import Ledger
from pforce.records.packing import Amount, pack
from pforce.storage import Storage
from tests.benchmarks.records import fill, planned
from tests.benchmarks.timing import spread
from tests.support.buckets import KEYS, s3_server


def read(storage: str, cells: int) -> dict[str, float]:
    """Seconds of each reader in this process."""
    place, found = Storage.open(storage), {}
    planned(Path(tempfile.mkdtemp()), 4)  # what is made once per process

    clock = time.perf_counter if place.remote else time.process_time

    def timed(what: str, function: Callable[[], object]) -> None:
        started = clock()
        function()
        found[what] = clock() - started

    timed("listed", Ledger(place).names)
    if place.remote:
        timed("all records read", lambda: list(Ledger(place).all()))
        return found
    timed("planned, all finished", lambda: planned(Path(storage), cells).missing == [] or sys.exit("not finished"))
    timed("rows as a table", lambda: results.runs(storage))
    return found


def in_turn(storages: dict[str, str], cells: int, rounds: int, folder: Path) -> None:
    """Print the seconds of each reader and their ratios within a round."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in storages}
    for number in range(rounds):
        for name, storage in storages.items():
            command = [sys.executable, "-m", "tests.benchmarks.pack", "--cells", str(cells), "--read", storage]
            environment = {**os.environ, "PFORCE_CACHE": str(folder / f"cache{number}{name}")}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            seconds[name].append(json.loads(done.stdout.splitlines()[-1]))
    for what in seconds["packed"][0]:
        loose, packed = (np.array([each[what] for each in seconds[name]]) for name in ("loose", "packed"))
        print(f"{what}: loose {spread(loose, 1, 3)} s, packed {spread(packed, 1, 3)} s, "
              f"packed / loose {spread(packed / loose, 1, 2)}, n = {rounds}", flush=True)  # fmt: skip


def show(what: str, amount: Amount, place: Storage) -> None:
    blocks = sum(path.stat().st_blocks * 512 for path in (place.root / "records").rglob("*") if path.is_file())
    print(f"{what}: {amount.loose:,} records in files of their own, {amount.packs} packs, {amount.bytes / 1e6:.1f} MB"
          + ("" if place.remote else f" ({blocks / 1e6:.1f} MB of disk blocks)"), flush=True)  # fmt: skip


def packed(place: Storage) -> None:
    """Pack a storage and print how long that took."""
    show("before", Amount.of(place), place)
    started = time.perf_counter()
    pack(place, print, older_than=-1e9)
    print(f"packed in {time.perf_counter() - started:.2f} s", flush=True)
    show("after", Amount.of(place), place)


@contextmanager
def bucket(folder: Path, loose: Path) -> Iterator[dict[str, str]]:
    """Two prefixes of a bucket with the records of a folder, one of them packed."""
    os.environ.update(KEYS, PFORCE_CACHE=str(folder / "cache"))
    with s3_server() as server:
        server.client().create_bucket(Bucket="bucket")
        found = {name: server.uri(f"bucket/{name}") for name in ("loose", "packed")}
        for uri in found.values():
            place = Storage.open(uri)
            shutil.copytree(loose / "records", place.root / "records")
            place.push("records")
        shutil.rmtree(folder / "cache")
        packed(Storage.open(found["packed"]))
        yield found


def main() -> None:
    """Print files, bytes and seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket", action="store_true")
    parser.add_argument("--read", help="of a call of its own: a storage, read once")
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.read, arguments.cells)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(fill(folder / "loose", arguments.cells), flush=True)
        if arguments.bucket:
            with bucket(folder, folder / "loose") as storages:
                in_turn(storages, arguments.cells, arguments.rounds, folder)
            return
        shutil.copytree(folder / "loose", folder / "packed")
        packed(Storage.open(folder / "packed"))
        in_turn({each: str(folder / each) for each in ("loose", "packed")}, arguments.cells, arguments.rounds, folder)


if __name__ == "__main__":
    main()
