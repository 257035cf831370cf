"""Checks that run on every node of a cluster. The module is sent there by value, so that it also runs where pforce is
missing.

Only the standard library, and a module that is sent along, are imported at the top; other imports, which may be
missing, are inside functions.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from pforce.base.machine import allowed_cores, cpu_quota, memory_bytes
from pforce.executors.support.sharing import claim, lock
from pforce.executors.support.surroundings import file_system, home, inodes, temporary, write_error

CACHE = "the data cache"
"""What the folder of the data cache is called where its place differs between machines."""
VERSIONS = ("pforce", "torch", "ray")
WAIT_SECONDS = 3.0
"""Seconds to wait for a file that another node wrote, as network file systems cache folders for a moment."""


def facts(storage: str) -> dict[str, Any]:
    """Facts about this machine as plain data: versions, memory, disks, limits, and whether the folders that are written
    to can be."""
    at_home = home()  # before the cache, which may be made there
    cache = cache_error()
    folders = {"/tmp": "/tmp", storage: storage} | ({CACHE: cache[0]} if cache else {})
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **{name: _version(name) for name in VERSIONS},
        "memory": memory_bytes(),
        "shm": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        "free": {"/tmp": free_bytes("/tmp"), storage: free_bytes(storage)},
        "inodes": {name: inodes(folder) for name, folder in folders.items()},
        "file_systems": {name: file_system(folder) for name, folder in folders.items()},
        "home": at_home,
        "temporary": temporary(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "cpus": allowed_cores(),
        "cpu_quota": cpu_quota(),
        "cache": cache,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def free_bytes(folder: str) -> int:
    """Free bytes in the file system of a folder, which need not exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cache_error() -> tuple[str, str | None] | None:
    """The data cache's folder, and the reason why it cannot be written or None; None alone where pforce is missing."""
    try:
        from pforce.base.files import cache_folder
    except ImportError:
        return None
    folder = cache_folder()
    return str(folder), write_error(folder)


def leave(folder: str, name: str, text: str) -> str | None:
    """Write a file for another node to find, without making the folder. Returns the reason where that fails, else
    None."""
    if not Path(folder).is_dir():
        return "is not there"
    try:
        # Not by `base.files`: this runs on nodes that have no pforce.
        descriptor = os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        return error.strerror or str(error)
    return None


def finds(folder: str, name: str, text: str, *, wait: float = WAIT_SECONDS) -> bool:
    """Whether the file that another node wrote appears in the folder of the same name on this node."""
    until = time.monotonic() + wait
    while True:
        try:
            if text in (Path(folder) / name).read_text():
                return True
        except OSError:
            pass  # not there yet
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)


def connect(host: str, port: int, timeout: float = 5.0) -> float:
    """Seconds to open a TCP connection. OSError where that fails."""
    start = time.perf_counter()
    with socket.create_connection((host, port), timeout=timeout):
        return time.perf_counter() - start


class Inspector:
    """An actor on one node that answers the probe."""

    def facts(self, storage: str) -> dict[str, Any]:
        return facts(storage)

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def leave(self, folder: str, name: str, text: str) -> str | None:
        return leave(folder, name, text)

    def remove(self, folder: str, name: str) -> None:
        (Path(folder) / name).unlink(missing_ok=True)

    def claim(self, folder: str, name: str) -> list[int]:
        """Numbers of the names that this node was the first to create, while others try the same."""
        return claim(folder, name)

    def lock(self, folder: str, name: str) -> str:
        """Lock a file, for as long as this actor lives: held, refused, or the reason why it cannot be locked."""
        self.descriptor, word = lock(folder, name)
        return word

    def connect(self, host: str, port: int) -> tuple[float | None, str]:
        """Seconds to open a TCP connection, or None and the reason."""
        try:
            return connect(host, port), ""
        except OSError as error:
            return None, error.strerror or str(error)
