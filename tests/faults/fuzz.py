"""Readers of foreign files, given mutations of valid ones: each ends well, or with one printable line.

    python -m tests.faults.fuzz --cases 5000 --out analysis/results/fuzz

A case is a valid file with some of its bytes changed, or some of its entries replaced by hostile ones and its hashes
made anew, as a stranger would. Each is read in a forked child, which counts as failed where anything but an error of
the user's input comes out, where the message is more than a line or holds a control character, where memory grows by
more than on the valid file and 3 × the file's size + 200 MB, where a program is started or a file outside the case's
folder is written, and where it takes longer than a minute. Writes JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pforce.base.errors import InputError
from tests.faults.foreign_files import READERS, Reader, Wrong, check_line

SEED = 20261130
EXTRA_BYTES = 200 << 20
SECONDS = 60
PER_CHILD = 50


def _peak() -> int:
    """Largest memory of this process since the last reset, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise Wrong("/proc/self/status has no VmHWM")


def _grown(call: Callable[[], object]) -> int:
    """Bytes by which memory grew at most during a call."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    try:
        call()
    finally:
        grown = _peak() - before
    return grown


STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")


class Guard:
    """Notes programs that are started, and files that are written outside a folder."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.found: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in STARTS:
            self.found.append(f"{event}{arguments!r}"[:200])
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100  # it may not be there
            if not path.startswith((self.folder, "/proc/self/", "/dev/null")) and not path.endswith(".pyc"):
                self.found.append(f"writes {path}")


def one_case(reader: Reader, folder: Path, guard: Guard, allowed: int) -> str:
    """How reading ended: `read` or `refused`. Wrong where it did what no reader may."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ended = "read"

    def call() -> None:
        nonlocal ended
        try:
            reader.read(folder)
        except InputError as error:
            ended = "refused"
            check_line(str(error))

    guard.folder, guard.found = str(folder), []
    started = time.monotonic()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            grown = _grown(call)
    finally:
        guard.folder = None
    for each in told:
        if issubclass(each.category, UserWarning):
            check_line(str(each.message))
    if guard.found:
        raise Wrong("; ".join(guard.found))
    if grown > allowed + 3 * size + EXTRA_BYTES:
        raise Wrong(f"memory grew by {grown / 2**20:.0f} MB on {size:,} bytes")
    if time.monotonic() - started > SECONDS:
        raise Wrong(f"it took {time.monotonic() - started:.0f} s")
    return ended


def cases(name: str, valid: Path, numbers: Sequence[int], scratch: Path, into: int) -> None:
    """Read mutations of these numbers in this process, which was forked for it, and report each into a pipe."""

    def report(found: dict[str, Any]) -> None:
        os.write(into, json.dumps(found).encode() + b"\n")

    reader, guard = READERS[name], Guard()
    os.environ["HOME"] = str(scratch)
    torch.set_num_threads(1)
    allowed = _grown(lambda: reader.read(valid))
    allowed = max(allowed, _grown(lambda: reader.read(valid)))
    for number in numbers:
        folder = scratch / "case"
        shutil.copytree(valid, folder, symlinks=True)
        source = random.Random(f"{SEED} {name} {number}")
        report({"number": number, "ended": "began"})
        signal.alarm(3 * SECONDS)
        try:
            reader.harm(folder, source)
            found = {"number": number, "ended": one_case(reader, folder, guard, allowed)}
        except Wrong as error:
            found = {"number": number, "ended": "wrong", "why": str(error)}
        except BaseException:
            found = {"number": number, "ended": "wrong", "why": traceback.format_exc()}
        signal.alarm(0)
        report(found)
        shutil.rmtree(folder)


@dataclass
class Outcome:
    """What became of a reader's cases."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)


def run(name: str, numbers: Sequence[int], folder: Path) -> Outcome:
    """Read mutations of these numbers in forked children, PER_CHILD in each."""
    valid = folder / "valid"
    if not valid.exists():
        valid.mkdir(parents=True)
        READERS[name].make(valid)
    outcome = Outcome()
    for first in range(0, len(numbers), PER_CHILD):
        part = numbers[first : first + PER_CHILD]
        scratch = Path(tempfile.mkdtemp(dir=folder))
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(out)
            code = 1
            try:
                cases(name, valid, part, scratch, into)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(into)
        under_way = -1
        with os.fdopen(out) as lines:
            for line in lines:
                found = json.loads(line)
                under_way = found["number"]
                if found["ended"] != "began":
                    outcome.ends[found["ended"]] += 1
                    under_way = -1
                if found["ended"] == "wrong":
                    outcome.wrong[found["number"]] = found["why"]
        _, status = os.waitpid(child, 0)
        if status:
            outcome.wrong[under_way] = f"the process ended with {os.waitstatus_to_exitcode(status)}"
        shutil.rmtree(scratch, ignore_errors=True)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="cases per reader")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--only", type=int, help="a single case")
    parser.add_argument("--out", type=Path, help="without ending: OUT.json and OUT.md")
    a = parser.parse_args()
    numbers = range(a.cases) if a.only is None else [a.only]
    rows: list[dict[str, Any]] = []
    wrong: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in a.readers:
            started = time.monotonic()
            found = run(name, numbers, Path(folder) / name)
            seconds = time.monotonic() - started
            rows.append({"reader": name, "cases": len(numbers), **found.ends, "seconds": round(seconds)})
            wrong |= {f"{name} {number}": why for number, why in found.wrong.items()}
            print(f"{name}: {dict(found.ends)}, {seconds:.0f} s", flush=True)
            for number, why in found.wrong.items():
                print(f"  {number}: {why}", flush=True)
    if a.out is not None:
        a.out.with_suffix(".json").write_text(json.dumps({"seed": SEED, "rows": rows, "wrong": wrong}, indent=1) + "\n")
        lines = ["| reader | cases | read | refused in one line | anything else |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['reader']} | {row['cases']:,} | {row.get('read', 0):,} | {row.get('refused', 0):,} | "
            f"{row.get('wrong', 0):,} |"
            for row in rows
        ]
        a.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
