"""`pforce logs`: print the logs of attempts at a cell."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import tyro
from rich.console import Console

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError, did_you_mean, require
from pforce.base.foreign import open_regular
from pforce.commands.stores import Place
from pforce.records.sweeps import read_sweeps
from pforce.storage import Storage
from pforce.trial.attempts import ATTEMPTS, logs_of
from pforce.trial.folder import TRAININGS, training_folder

LOOK_SECONDS = 0.5
MOST_LISTED = 12
OBEYED = {code: None for code in (*range(32), 127) if chr(code) not in "\n\t"}
"""Control characters that a terminal would obey, and that are left out."""
ENDS = (" done", " stopped")
"""Endings of a log after which there is nothing to follow."""


def logs(
    cell: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CELL")],
    *,
    attempt: int | None = None,
    follow: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    store: Place,
) -> int:
    """Print the log of an attempt at a cell: points, warnings, output and traceback. Default: the newest attempt.

    Args:
        cell: its name in the sweep's table, such as "m=0.7 sigma=0.2 seed=0", or the beginning of its fingerprint or of
            its training's.
        attempt: number of the attempt, counted from 1.
        follow: keep printing as the log grows, and later attempts too, until one of them is done, or Ctrl-C.
    """
    console = make_console()
    place = store.place
    folder = training_folder(find_training(place, cell, console))
    names = logs_of(place, folder)
    if not names and not follow:
        raise ConfigError(f"{cell}: no attempt has left a log in {place.root / folder / ATTEMPTS}")
    if attempt is not None:
        wanted = [name for name in names if name.split(".")[0] == str(attempt)]
        there = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        require(bool(wanted), "attempt", attempt, f"one of {there}")
        names = wanted
    newest = names[-1].split(".")[0] if names else ""
    shown = [name for name in names if name.split(".")[0] == newest]
    for name in shown if not follow else shown[1:]:  # the first worker's log is last if it is followed
        _print(place, folder, name, console)
    if follow:
        try:
            _follow(place, folder, shown[0] if shown else None, console)
        except KeyboardInterrupt:
            console.print()
    return DONE


def find_training(storage: Storage, text: str, console: Console) -> str:
    """Digest of the training of the cell that a user names. ConfigError where there is none, or several."""

    def say(line: str) -> None:
        console.print(f"warning: {line}", soft_wrap=True)

    found: dict[str, str] = {}
    labels: list[str] = []
    for sweep in read_sweeps(storage, say):
        for entry in sweep.cells:
            parts = entry.parts()
            if parts is None:
                continue
            training = parts.training.digest
            labels.append(entry.label)
            begins = len(text) >= 4 and (entry.cell.startswith(text) or training.startswith(text))
            if begins or entry.label == text:
                found[training] = f"{sweep.name}: {entry.label} ({entry.cell[:12]})"
    if not found and len(text) >= 4 and "/" not in text:
        names = {name.split("/")[1] for name in storage.list(TRAININGS)} if storage.remote else _folders(storage)
        found = {name: name for name in names if name.startswith(text)}
    if len(found) == 1:
        return next(iter(found))
    if found:
        listed = "; ".join(list(found.values())[:MOST_LISTED])
        raise ConfigError(f"{text}: is the name of {len(found)} trainings; give the fingerprint of one: {listed}")
    where = f"no cell of a sweep in {storage} has this name; "
    raise ConfigError(f"{text}: {where}{did_you_mean(text, dict.fromkeys(labels[-MOST_LISTED:]), 'cells are')}")


def _folders(storage: Storage) -> set[str]:
    folder = storage.root / TRAININGS
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _path(storage: Storage, folder: str, name: str) -> Path:
    relative = f"{folder}/{ATTEMPTS}/{name}"
    if storage.remote:
        storage.pull(relative)
    return storage.root / relative


def _print(storage: Storage, folder: str, name: str, console: Console) -> None:
    path = _path(storage, folder, name)
    console.rule(f"{path.parent.parent.name[:12]} · {name}", style="dim")
    for piece in _pieces(path):
        _out(piece, console)


def _out(text: str, console: Console) -> None:
    """Write a text without control characters that a terminal would obey: an attempt's output is only data."""
    console.out(text.translate(OBEYED), end="")


def _opened(path: Path) -> IO[str]:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace")


def _pieces(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        while piece := file.read(1 << 20):
            yield piece


def _follow(storage: Storage, folder: str, name: str | None, console: Console) -> None:
    """Print a log as it grows, then the logs of later attempts, until one is done."""
    while name is None:
        time.sleep(LOOK_SECONDS)
        name = next(iter(logs_of(storage, folder)), None)
    while True:
        path, last = _path(storage, folder, name), ""
        console.rule(f"{path.parent.parent.name[:12]} · {name}", style="dim")
        with _opened(path) as file:
            while True:
                piece = file.read()
                if piece:
                    _out(piece, console)
                    last = (last + piece)[-200:]
                    continue
                if last.rstrip("\n").endswith(ENDS):
                    return
                newer = [each for each in logs_of(storage, folder) if int(each.split(".")[0]) > int(name.split(".")[0])]
                if newer:
                    name = newer[0]
                    break
                time.sleep(LOOK_SECONDS)
