"""The log of an attempt: a file in the training's folder, `attempts/N.log`, with its output, warnings and traceback.

A log that cannot be written, for example on a full disk, does not disturb the training: its lines are dropped, with one
warning.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pforce.storage import Storage, StorageError

ATTEMPTS = "attempts"
"""Folder of the logs in a training's or a drawing's folder."""
MOST_BYTES = 16 << 20
"""Largest size of a log in bytes; later output is dropped."""
MOST_TRACEBACK = 1 << 20
NAME = re.compile(r"(?P<number>\d{1,9})(\.(?P<rank>\d{1,6}))?\.log")


def log_name(number: int, rank: int = 0) -> str:
    """File name of a log: `3.log`; for the second worker of a group, `3.1.log`."""
    return f"{number}.{rank}.log" if rank else f"{number}.log"


def logs_of(storage: Storage, folder: str) -> list[str]:
    """Names of the logs in a training's or a drawing's folder: the newest attempt last, first workers before the
    others."""
    matches = [match for name in storage.names(f"{folder}/{ATTEMPTS}") if (match := NAME.fullmatch(name))]
    return [match.string for match in sorted(matches, key=lambda m: (int(m["number"]), int(m["rank"] or 0)))]


def shortened(text: str, most: int) -> str:
    """A text cut to at most `most` characters: its beginning and its end."""
    if len(text) <= most:
        return text
    cut = f"\n… {len(text) - most:,} characters left out …\n"
    keep = max(0, most - len(cut)) // 2
    return text[:keep] + cut + text[len(text) - keep :]


class AttemptLog:
    """The log of an attempt. Its file is made by `open`.

    Args:
        folder: folder of the training or drawing, below the storage's root.
        about: description of the attempt, its first line.
        rank: rank of the worker in its group.
    """

    def __init__(self, storage: Storage, folder: str, about: str, *, rank: int = 0) -> None:
        self.storage, self.folder, self.about, self.rank = storage, f"{folder}/{ATTEMPTS}", about, rank
        self.problem: str | None = None
        """Message of why output is not kept; None where all is kept."""
        self.number = 0
        self.path: Path | None = None
        self._file: int | None = None
        self._written = 0

    @property
    def name(self) -> str | None:
        """Path of the file below the storage's root; None where there is none."""
        return None if self.path is None else f"{self.folder}/{self.path.name}"

    def open(self, number: int | None = None) -> int:
        """Make the file and return its number: the next free one, or the given number of the group's first worker."""
        if self._file is not None or self.problem is not None:
            return self.number
        try:
            folder = self.storage.root / self.folder
            folder.mkdir(parents=True, exist_ok=True)
            there = [int(match["number"]) for name in self._names(folder) if (match := NAME.fullmatch(name))]
            self.number = max(there, default=0) + 1 if number is None else number
            while self._file is None:
                self.path = folder / log_name(self.number, self.rank)
                try:
                    self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)
                except FileExistsError:
                    self.number += 1
        except OSError as error:
            self.path, self.problem = None, f"the attempt's output is not kept: {error}"
            return self.number
        self.line(self.about)
        return self.number

    def _names(self, folder: Path) -> set[str]:
        names = {path.name for path in folder.iterdir()}
        if self.storage.remote:
            with suppress(StorageError):
                names |= set(self.storage.names(self.folder))
        return names

    def line(self, text: str) -> None:
        """Write a line with the time, if the file was made."""
        self.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def write(self, text: str) -> None:
        """Write a text as it is, if the file was made."""
        content = text.encode(errors="replace")
        if self._file is None or self._written >= MOST_BYTES:
            return
        if self._written + len(content) > MOST_BYTES:
            content = content[: MOST_BYTES - self._written] + b"\n(the log is full)\n"
        self._written += len(content)
        try:
            os.write(self._file, content)
        except OSError as error:
            self.problem = f"the attempt's output is no longer kept: {error}"

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Redirect this process's output into the log during the block, including that of C libraries."""
        self.open()
        if self._file is None:
            yield
            return
        outputs = sys.stdout, sys.stderr
        for each in outputs:
            with suppress(OSError, ValueError):
                each.flush()
        kept = os.dup(1), os.dup(2)
        try:
            os.dup2(self._file, 1)
            os.dup2(self._file, 2)
            sys.stdout = sys.stderr = _Output(self)
            yield
        finally:
            sys.stdout, sys.stderr = outputs
            for number, file in zip((1, 2), kept, strict=True):
                os.dup2(file, number)
                os.close(file)

    def close(self) -> None:
        """Close the file. With a bucket, upload it; where the bucket does not answer, it stays on this machine."""
        if self._file is None:
            return
        os.close(self._file)
        self._file = None
        if self.storage.remote and self.name is not None:
            with suppress(StorageError):
                self.storage.push(self.name)


class _Output(io.TextIOBase):
    """Python's output streams during `captured`: a full disk does not raise an error in code that prints."""

    def __init__(self, log: AttemptLog) -> None:
        self.log = log

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.log.write(text)
        return len(text)

    def fileno(self) -> int:
        return 1
