"""Trials of what pforce relies on in a file system that several processes share, and of the locks that sqlite needs.

`python sharing.py VERB FOLDER NAME` carries one out in a process of its own, which can be given up where a server of
files hangs; the result is JSON on stdout. Only the standard library is imported, because the module is also sent by
value to nodes where pforce may be missing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROUNDS = 20
"""Names for which processes compete, and files that one makes and another reads."""
CONTENT = b"whole" * 13_107
WAIT_SECONDS = 5.0
WITHOUT = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}
"""Errors of a file system that makes no hard links."""


def claim(folder: str, name: str) -> list[int]:
    """Numbers of the names that this process was the first to create, as `storage.bucket.link_file` creates them. Other
    processes try the same ones meanwhile."""
    won = []
    for number in range(ROUNDS):
        target = Path(folder) / f"{name}.{number}"
        scratch = Path(folder) / f"{name}.{number}.{os.getpid()}.{os.urandom(4).hex()}"
        scratch.write_bytes(b"")
        try:
            try:
                os.link(scratch, target)
            except OSError as error:
                if error.errno not in WITHOUT:
                    raise
                os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            won.append(number)
        except FileExistsError:
            if scratch.stat().st_nlink == 2:  # its own link, whose answer was lost
                won.append(number)
        finally:
            scratch.unlink(missing_ok=True)
    return won


def put(folder: str, name: str) -> None:
    """Make files that appear whole, as `base.files.write_whole` makes them."""
    for number in range(ROUNDS):
        scratch = Path(folder) / f"{name}.{number}.new"
        scratch.write_bytes(CONTENT)
        scratch.replace(Path(folder) / f"{name}.{number}")


def watch(folder: str, name: str) -> str | None:
    """Read the files that another process makes by `put`, as soon as they are there. Returns what is wrong, or None."""
    until = time.monotonic() + WAIT_SECONDS
    list(Path(folder).iterdir())  # raises where it is not there
    for number in range(ROUNDS):
        while True:
            with suppress(FileNotFoundError):
                content = (Path(folder) / f"{name}.{number}").read_bytes()
                if content == CONTENT:
                    break
                return f"a file that was renamed into its place had {len(content):,} of {len(CONTENT):,} bytes"
            if time.monotonic() > until:
                return f"a file that another process made was not seen within {WAIT_SECONDS:.0f} s"
            time.sleep(0.001)
    return None


def lock(folder: str, name: str) -> tuple[int | None, str]:
    """Lock a file, if nobody holds it. Returns its descriptor, and one word: held, refused, or the error's text."""
    descriptor = os.open(Path(folder) / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None, "refused" if error.errno in (errno.EACCES, errno.EAGAIN) else error.strerror or str(error)
    return descriptor, "held"


def remove(folder: str, name: str) -> None:
    """Remove what trials of this name have left."""
    for path in Path(folder).glob(f"{name}*"):
        path.unlink(missing_ok=True)


def _hold(folder: str, name: str) -> str:
    """Hold a lock until stdin ends."""
    _, word = lock(folder, name)
    if word == "held":
        print(json.dumps(word), flush=True)
        sys.stdin.read()
    return word


VERBS: dict[str, Callable[[str, str], Any]] = {
    "claim": claim, "put": put, "watch": watch, "hold": _hold, "lock": lambda folder, name: lock(folder, name)[1],
}  # fmt: skip


def main() -> None:
    """Carry out a trial, and print its result, or {"error": …}."""
    verb, folder, name = sys.argv[1:]
    try:
        result = VERBS[verb](folder, name)
    except OSError as error:
        result = {"error": error.strerror or str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
