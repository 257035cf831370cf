"""Processes of this machine, so that a test ends only those that it started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def processes() -> Iterator[tuple[int, bytes, int]]:
    """(process, command, parent) of everything that runs."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it ended while we looked
        yield int(process.name), command, parent


def raylets() -> set[int]:
    """Raylets that this process started."""
    return {
        process for process, command, parent in processes() if b"raylet/raylet" in command and parent == os.getpid()
    }
