"""Facts about what a process is surrounded by on a machine: its home, temporary folders, file systems.

Only the standard library is imported, because the module is sent by value to nodes where pforce may be missing.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from pforce.base.mounts import mount_of

SOCKET_BYTES = 107
"""Most bytes of a socket's path on Linux."""
TEST_BYTES = 1 << 20
TEMPORARY = ("TMPDIR", "RAY_TMPDIR")
"""Variables that name folders for temporary files."""


def write_error(folder: Path) -> str | None:
    """Reason why a file of 1 MiB cannot be written into a folder, which is made; None where it can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".pforce-doctor-") as file:
            file.write(bytes(TEST_BYTES))  # of a quota that is used up the name alone tells nothing
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def existing_error(folder: Path) -> str | None:
    """Reason why nothing can be written to a folder, which is not made; None where it can be written."""
    if not folder.is_dir():
        return "is not a folder" if folder.exists() else "is not there"
    return write_error(folder)


def home() -> tuple[str, str | None]:
    """The home folder, and the reason why it cannot serve, or None."""
    try:
        folder = Path.home()
    except RuntimeError:
        return "HOME", "is not set, and this user has none"
    return str(folder), existing_error(folder)


def socket_excess(folder: str) -> int:
    """Bytes by which a socket of Ray's would exceed the limit where Ray's folder is this one; 0 where it fits."""
    try:
        process = Path("/proc/sys/kernel/pid_max").read_text().strip()
    except OSError:
        process = "4194304"
    session = f"session_2026-12-31_23-59-59_999999_{process}"
    return max(0, len(os.fsencode(f"{folder}/{session}/sockets/plasma_store")) - SOCKET_BYTES)


def own_excess(folder: str) -> int:
    """Bytes by which a socket between processes of Python (multiprocessing's) would exceed the limit in a folder for
    temporary files; 0 where it fits."""
    return max(0, len(os.fsencode(f"{folder}/pymp-12345678/listener-12345678")) - SOCKET_BYTES)


def temporary() -> dict[str, dict[str, Any]]:
    """Variable that names a folder for temporary files → that folder, why it cannot be written, whether no program in
    it can be run, and by how many bytes it is too long for sockets, Ray's and others. Without TMPDIR `/tmp` is one."""
    named = {name: os.environ[name] for name in TEMPORARY if os.environ.get(name)}
    if "TMPDIR" not in named:
        named["/tmp"] = "/tmp"
    found = {}
    for name, folder in named.items():
        mount = mount_of(folder)
        found[name] = {
            "folder": folder,
            "error": existing_error(Path(folder)),
            "noexec": mount is not None and "noexec" in mount.options,
            "excess": socket_excess(f"{folder}/ray"),
            "own_excess": own_excess(folder),
        }
    return found


def inodes(folder: str) -> tuple[int, int] | None:
    """Files that this user may still make in the file system of a folder, and all that it can hold; None where it does
    not count them."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return (found.f_favail, found.f_files) if found.f_files else None


def file_system(folder: str) -> tuple[str, str, bool] | None:
    """Kind, source, and whether machines share it, of the file system that a folder lies on; None where unknown."""
    mount = mount_of(folder)
    return None if mount is None else (mount.kind, mount.source, mount.network)
