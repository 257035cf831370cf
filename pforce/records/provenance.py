"""Provenance of results: versions, commit, uncommitted changes, host and user."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path

import torch

from pforce.base.files import read_small, read_whole
from pforce.base.machine import machine_cores

CODE = ("pforce", "pforce_experiments", "sweeps")
"""Folders of a checkout whose files decide results."""
UNKNOWN = "unknown"
DRIVER = re.compile(r"\d{3,}\.\d+(\.\d+)?")
"""A graphics driver's version."""
KIBIBYTES_A_GIBIBYTE = 1 << 20
MOST_BYTES = 1 << 20
PACKAGES = ("pforce", "torch", "numpy", "scipy", "ray", "mlflow")


def user() -> str:
    """Name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in containers
        return str(os.getuid())


def _git(root: Path, *words: str) -> bytes | None:
    """Output of git in a checkout; None where it refuses, as for a checkout that belongs to another user."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def code_in(root: Path) -> dict[str, str]:
    """`commit` of a checkout, and `changes`, the hash of what is not committed, new files included, where there is
    anything. Both are `unknown` where git does not say; an installed package has neither."""
    if not (root / ".git").exists() or not shutil.which("git"):
        return {}
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "diff", "HEAD", "--", *CODE)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE)
    if head is None or changed is None or new is None:
        return {"commit": UNKNOWN, "changes": UNKNOWN}
    found = {"commit": head.decode().strip()}
    names = sorted(name for name in new.split(b"\0") if name)
    if not changed.strip() and not names:
        return found
    hashed = hashlib.sha256(changed)
    for name in names:
        path = root / os.fsdecode(name)
        hashed.update(name + b"\0" + (read_whole(path) if path.is_file() else b"") + b"\0")
    return {**found, "changes": hashed.hexdigest()[:16]}


@cache
def code() -> dict[str, str]:
    """`code_in` of the checkout that this process runs."""
    return code_in(Path(__file__).resolve().parents[2])


@cache
def versions() -> dict[str, str]:
    """Versions of installed packages, under keys such as `version.torch`."""
    found = {}
    for name in PACKAGES:
        try:
            found[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # the core runs without Ray and MLflow
            continue
    return found


def provenance() -> dict[str, str]:
    """Provenance of results of this process: code, versions, host and user."""
    return {**code(), **versions(), "host": socket.gethostname(), "user": user()}


@cache
def machine() -> dict[str, str]:
    """The kind of machine: `host_type`; the graphics `driver`, where there is one; and the `container` that this
    process runs in, by its image where PFORCE_IMAGE names it."""
    model = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
                 platform.processor() or platform.machine())  # fmt: skip
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    found = {"host_type": f"{model}, {machine_cores()} cores, {memory / KIBIBYTES_A_GIBIBYTE:.0f} GiB"}
    driver = next((match for line in _lines("/proc/driver/nvidia/version") if (match := DRIVER.search(line))), None)
    if driver is not None:
        found["driver"] = driver[0]
    inside = [path for path in ("/.dockerenv", "/run/.containerenv") if Path(path).exists()]
    if image := os.environ.get("PFORCE_IMAGE"):
        found["container"] = image
    elif inside or "KUBERNETES_SERVICE_HOST" in os.environ:
        found["container"] = UNKNOWN
    return found


def _lines(path: str) -> list[str]:
    """Lines of a file of the system; none where it is not there."""
    try:
        return read_small(Path(path), MOST_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return []


def made_on(device: torch.device, *, precision: str = "float32") -> dict[str, str]:
    """`provenance` with the device, and settings that may change a result's rounding."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        **provenance(), **machine(), "device": name, "precision": precision, "threads": str(torch.get_num_threads()),
        "tf32": str(torch.backends.cuda.matmul.allow_tf32),
    }  # fmt: skip
