"""File systems: which one a folder lies on, and whether machines share it over a network.

Only the standard library is imported, because the module is sent by value to nodes where pforce may be missing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TABLE = "/proc/self/mountinfo"
NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "fhgfs", "ceph", "ceph-fuse", "cifs", "smb3", "smbfs", "afs", "coda",
    "glusterfs", "sshfs", "juicefs", "wekafs", "panfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "moosefs", "mfs",
    "quobyte", "daos", "dfuse", "davfs", "s3fs", "gcsfuse", "blobfuse", "blobfuse2", "rclone", "goofys",
    "mountpoint-s3", "9p", "virtiofs", "vboxsf", "prl_fs", "vmhgfs", "vmhgfs-fuse", "osxfs", "grpcfuse", "fakeowner",
}  # fmt: skip
"""File systems that machines share over a network, or a virtual machine with its host; those of FUSE without `fuse.`"""
OF_A_CONTAINER = {"overlay", "aufs", "fuse.fuse-overlayfs"}
"""File systems of a container's own layer, which vanishes with it."""
IN_MEMORY = {"tmpfs", "ramfs"}


class Mount(NamedTuple):
    """A file system where it is mounted."""

    point: str
    kind: str
    """Its type, as `mount` names it: nfs4, ext4, fuse.sshfs."""
    source: str
    """Device, or server and folder."""
    options: tuple[str, ...]
    """Options of this mount, such as ro and noexec."""

    @property
    def network(self) -> bool:
        """Whether other machines may share it."""
        name = self.source if self.kind == "fuse" else self.kind.removeprefix("fuse.")
        return name.partition("#")[0].lower() in NETWORK

    def __str__(self) -> str:
        return f"{self.kind} ({self.source})"


def _plain(text: str) -> str:
    """A field of the table without its octal escapes, such as \\040 for a blank."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _parsed(line: str) -> Mount | None:
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(rest) < 2:
        return None
    return Mount(_plain(fields[4]), rest[0], _plain(rest[1]), tuple(fields[5].split(",")))


def mount_of(folder: str | Path, table: str | Path = TABLE) -> Mount | None:
    """The file system that a folder, which need not exist yet, lies on; None where the system does not say.

    Args:
        table: file of all mounts, as Linux has it for each process.
    """
    try:
        path = Path(folder).resolve()
        path.exists()  # an automounter mounts it now
        lines = Path(table).read_text(errors="replace").splitlines()
    except (OSError, RuntimeError):
        return None
    found = None
    for mount in filter(None, map(_parsed, lines)):
        longest = found is None or len(mount.point) >= len(found.point)  # of two at one point the later is on top
        if longest and path.is_relative_to(mount.point):
            found = mount
    return found


def on_network(folder: str | Path, table: str | Path = TABLE) -> Mount | None:
    """The file system of a folder where machines share it over a network; None for a local one, or an unknown one."""
    mount = mount_of(folder, table)
    return mount if mount is not None and mount.network else None
