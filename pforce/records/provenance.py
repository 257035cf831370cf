"""Provenance of results: versions, commit, uncommitted changes, host and user."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path

import torch

PACKAGES = ("pforce", "torch", "numpy", "scipy", "ray", "mlflow")


def user() -> str:
    """Name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in containers
        return str(os.getuid())


def _git(*words: str) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
    return done.stdout.decode(errors="replace")


@cache
def code() -> dict[str, str]:
    """`commit` of this code where it is a checkout, and `changes`, the hash of uncommitted changes, where there are
    any."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return {}
    changed = _git("diff", "HEAD", "--", "pforce", "pforce_experiments", "sweeps")
    found = {"commit": _git("rev-parse", "HEAD").strip()}
    return {**found, "changes": hashlib.sha256(changed.encode()).hexdigest()[:16]} if changed.strip() else found


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


def made_on(device: torch.device, *, precision: str = "float32") -> dict[str, str]:
    """`provenance` with the device, and settings that may change a result's rounding."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        **provenance(), "device": name, "precision": precision, "threads": str(torch.get_num_threads()),
        "tf32": str(torch.backends.cuda.matmul.allow_tf32),
    }  # fmt: skip
