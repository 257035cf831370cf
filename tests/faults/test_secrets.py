"""Secrets are planted wherever a user may put one; afterwards they are nowhere else.

Oracle: a search of all that the commands printed, left on disk, in the bucket and in the store, and of the command
lines of all processes while they ran.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pforce.base.console import DONE, USAGE_ERROR
from tests.support.buckets import Server
from tests.support.ports import free_port
from tests.support.starts import ROOT, completed
from tests.tracking.servers import MlflowServer

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
PLANTED = {
    name: f"PLANTED{name}7f3a"
    for name in (
        "BucketKey",
        "BucketSecret",
        "EnvSecret",
        "TrackingPassword",
        "TrackingToken",
        "RayToken",
        "DbPassword",
    )
}
SMALL = [
    "--m", "0.7", "--sigma", "0.2", "--set", "model.depth=1", "--set", "model.width=16", "--set", "model.heads=2",
    "--set", "evaluation.images=8", "--set", "evaluation.held_out_images=16", "--set", "evaluation.label_images=16",
    "--set", "evaluation.reference_images=16", "--set", "sampler.num_function_evaluations=2",
    "--set", "training.images=640", "--cpus-per-trial", "1",
]  # fmt: skip


class Lines(threading.Thread):
    """Looks through the command lines of all processes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    line = (process / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                self.found |= {f"{secret} in {line!r}" for secret in PLANTED.values() if secret in line}
            time.sleep(0.1)


@pytest.fixture
def mlflow(tmp_path) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path / "server")
    found.start()
    try:
        yield found
    finally:
        found.kill()


def in_files(*folders: Path) -> set[str]:
    """Files below some folders that hold a planted secret."""
    found = set()
    for path in [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]:
        try:
            content = path.read_bytes()
        except OSError:
            continue  # a process has just removed it
        found |= {f"{secret} in {path}" for secret in PLANTED.values() if secret.encode() in content}
    return found


def test_secrets_stay_where_they_were_put(server: Server, mlflow: MlflowServer, openmoji_folder, tmp_path):
    home, temporary, ray = tmp_path / "home", tmp_path / "tmp", Path(f"/tmp/pforce-secrets-{os.getpid()}")
    for folder in (home, temporary, ray):
        folder.mkdir()
    env = {
        "HOME": str(home), "TMPDIR": str(temporary), "RAY_TMPDIR": str(ray), "PFORCE_CACHE": os.environ["PFORCE_CACHE"],
        "AWS_SESSION_TOKEN": PLANTED["EnvSecret"], "MLFLOW_TRACKING_TOKEN": PLANTED["TrackingToken"],
        "RAY_AUTH_TOKEN": PLANTED["RayToken"],
    }  # fmt: skip
    storage = server.uri("bucket/secret", f"{PLANTED['BucketKey']}:{PLANTED['BucketSecret']}@")
    tracking = mlflow.uri.replace("://", f"://me:{PLANTED['TrackingPassword']}@")
    database = f"postgresql://me:{PLANTED['DbPassword']} x'@127.0.0.1:{free_port()}/db"
    where, sweep = ["--storage", storage, "--tracking-uri", tracking], [str(ROOT / "sweeps" / "ltg_grid.py"), *SMALL]
    gone = server.uri("nothere/x", f"{PLANTED['BucketKey']}:{PLANTED['BucketSecret']}@")
    calls = [
        ([*sweep, *where, "--executor", "tune"], DONE),
        ([*sweep, *where, "--executor", "processes", "--set", "training.images=1280", "--name", "longer"], DONE),
        ([*sweep, *where, "--search", "tpe", "--trials", "2", "--name", "searched", "--study", database], USAGE_ERROR),
        ([*sweep, "--storage", str(tmp_path / "local"), "--tracking-uri", database], USAGE_ERROR),
        ([*sweep, "--storage", gone, "--tracking-uri", tracking], USAGE_ERROR),
        ([*sweep, *where, "--dry-run"], DONE),
        (["pforce", "runs", *where], DONE),
        (["pforce", "cost", *where], DONE),
        (["pforce", "records", "list", "--storage", storage], DONE),
        (["pforce", "evaluate", "best:ltg_grid", *where, "--evaluation.images", "4", "--nfe", "2"], DONE),
        (["pforce", "sample", "best:ltg_grid", *where, "--count", "2", "--nfe", "2"], DONE),
        (["pforce", "report", "ltg_grid", "--storage", storage, "--out", str(tmp_path / "report.html")], DONE),
        (["pforce", "sample", "best:nothing", *where], USAGE_ERROR),
        (["pforce", "doctor", *where], None),
    ]  # fmt: skip
    lines = Lines()
    lines.start()
    try:
        for words, code in calls:
            done = completed(*words, env=env, cwd=tmp_path)
            told = done.stdout + done.stderr
            assert code in (None, done.returncode), (words[:3], told)
            for secret in PLANTED.values():
                assert secret not in told, (words[:3], told)
        lines.stop.set()
        lines.join()
        assert lines.found == set()
        assert in_files(home, temporary, ray, tmp_path / "server", tmp_path, Path(env["PFORCE_CACHE"])) == set()
        for key in server.keys("bucket"):
            content = server.content("bucket", key)
            assert not [secret for secret in PLANTED.values() if secret.encode() in content], key
    finally:
        lines.stop.set()
        shutil.rmtree(ray, ignore_errors=True)
