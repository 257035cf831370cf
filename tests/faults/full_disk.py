"""What `test_full_disk.py` runs in a mount namespace: a sweep on a disk that fills, then the same with room; a notice
that comes when the disk is full; and pictures shown in MLflow on a disk that is full."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pforce import results  # noqa: E402
from pforce.base.console import make_console  # noqa: E402
from pforce.commands.mirror import mirror_storage  # noqa: E402
from pforce.executors.processes import STARTS  # noqa: E402
from pforce.records.ledger import Ledger  # noqa: E402
from pforce.storage import Storage  # noqa: E402
from pforce.tracking import Tracker, default_uri  # noqa: E402
from pforce.training.checkpoint import CheckpointError, load, saved  # noqa: E402
from tests.support.starts import PFORCE, Start, completed  # noqa: E402

BATCH, STEPS, EVERY = 64, 160, 10
DISK_KILOBYTES = 24 * 1024
FIELDS = {
    "model.depth": 2, "model.width": 32, "model.heads": 2, "training.images": STEPS * BATCH,
    "training.checkpoint_every": EVERY, "training.log_every": EVERY, "evaluation.images": 8,
    "evaluation.held_out_images": 16, "evaluation.label_images": 16, "evaluation.reference_images": 16,
    "sampler.num_function_evaluations": 2,
}  # fmt: skip


def command(kind: str, storage: Path, **changes: int) -> list[str]:
    """`pforce train` in one process, or a sweep whose trials are in others.

    Args:
        changes: fields of the training that differ.
    """
    where = ["--storage", str(storage), "--cpus-per-trial", "1"]
    fields_of = FIELDS | {f"training.{name}": value for name, value in changes.items()}
    if kind == "train":
        fields = [part for name, value in fields_of.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        return [PFORCE, "train", "openmoji32_micro", *fields, *where]
    fields = [part for name, value in fields_of.items() for part in ("--set", f"{name}={value}")]
    script = str(ROOT / "sweeps" / "ltg_grid.py")
    return [script, "--m", "0.7", "--sigma", "0.2", *fields, *where, "--executor", "processes"]


def call(kind: str, storage: Path) -> dict[str, object]:
    done = completed(*command(kind, storage), timeout=270)
    return {"code": done.returncode, "output": done.stdout + done.stderr}


def filler(disk: Path, kilobytes: int) -> Path:
    """Leave so much room on the disk."""
    path = disk / "filler"
    path.write_bytes(b"\0" * (DISK_KILOBYTES - kilobytes) * 1024)
    return path


def curve(storage: Path, run_id: str) -> list[int]:
    client = Tracker(default_uri(storage), artifacts=storage).client
    history = sorted(client.get_metric_history(run_id, "train/loss"), key=lambda point: point.timestamp)
    return [point.step // BATCH for point in history]


def small_disk(disk: Path) -> Path:
    """Mount a small file system. Returns the folder of a storage on it."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KILOBYTES}k", "none", str(disk)], check=True)
    return disk / "runs"


def checkpoints(storage: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return [path for folder in storage.glob("trainings/*") for path in saved(folder)]


def until_there_are(storage: Path, call: Start, number: int) -> None:
    """Wait for that many points of a training, or for its end."""
    while call.poll() is None:
        logs = [path.read_text().count("images seen") for path in storage.glob("trainings/*/attempts/*.log")]
        if sum(logs) >= number:
            return
        time.sleep(0.02)


def noticed(disk: Path) -> dict[str, object]:
    """What becomes of a training that is noticed twice, the second time when the disk is full, and of the same command
    with room."""
    storage, log = small_disk(disk), disk.with_suffix(".log")
    words = command("train", storage, checkpoint_every=100_000, images=1_000 * BATCH)
    call = Start(words, log=log)
    until_there_are(storage, call, 2)
    call.send_signal(signal.SIGUSR1)
    while call.poll() is None and not checkpoints(storage):
        time.sleep(0.02)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    call.send_signal(signal.SIGUSR1)
    code = call.wait(120)
    there = checkpoints(storage)
    found: dict[str, object] = {
        "first": {"code": code, "output": log.read_text()}, "newest": len(there), "whole": bool(load(there[-1])),
    }  # fmt: skip
    filler.unlink()
    done = completed(*words, timeout=120)
    steps = curve(storage, results.runs(default_uri(storage))["run_id"].iloc[0])
    kept = int(there[-1].name.removeprefix("step_"))
    again = [step for index, step in enumerate(steps) if step in steps[:index]]
    return {
        **found, "second": {"code": done.returncode, "output": done.stdout + done.stderr},
        "repeated_before_checkpoint": [step for step in again if step <= kept],
    }  # fmt: skip


def drill(kind: str, kilobytes: int, disk: Path) -> dict[str, object]:
    """What became of a training that had so much room for its checkpoints, and of the same command with more."""
    storage = small_disk(disk)
    # The database and the files of a sweep's start need some; what is left is for checkpoints.
    extra = 4 * 1024
    taken = filler(disk, kilobytes + extra)
    found: dict[str, object] = {"first": call(kind, storage)}
    newest = checkpoints(storage)
    found["newest"] = int(newest[-1].name.removeprefix("step_")) if newest else -1
    try:
        found["whole"] = bool(newest) and bool(load(newest[-1]))
    except CheckpointError as error:
        found["whole"] = str(error)
    taken.unlink()
    frame = results.runs(default_uri(storage))
    found["statuses"] = list(frame["status"]) if len(frame) else []
    found["second"] = call(kind, storage)
    frame = results.runs(default_uri(storage))
    found["end"] = list(frame["status"])
    steps = curve(storage, frame["run_id"].iloc[0])
    repeated = [step for index, step in enumerate(steps) if step in steps[:index]]
    found["repeated_before_checkpoint"] = [step for step in repeated if step <= int(str(found["newest"]))]
    return found


def mirrored(storage: Path) -> tuple[int, str]:
    """Exit code and output of `pforce mirror`."""
    place, said = Storage.open(storage), io.StringIO()
    tracker = Tracker(default_uri(storage), artifacts=storage / "artifacts")
    console = make_console(file=said, width=1000)
    return mirror_storage(place, tracker, Ledger(place, print), console), said.getvalue()


def pictures(storage: Path) -> dict[str, object]:
    """What becomes of the pictures of a lost store where there is no room for them, and once there is."""
    artifacts = storage / "artifacts"
    shutil.rmtree(artifacts)
    (storage / "mlflow.db").unlink()
    artifacts.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(artifacts)], check=True)
    found: dict[str, object] = {"full": mirrored(storage), "metrics": bool(results.runs(default_uri(storage)).size)}
    subprocess.run(["umount", str(artifacts)], check=True)
    found["room"] = mirrored(storage)
    return {**found, "files": sorted({path.name for path in artifacts.rglob("*.*")})}


def main() -> None:
    folder, train, sweep = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    STARTS.set_forkserver_preload(["tests.support.preload"])  # begins here: with this process's file systems
    report = {kind: drill(kind, room, folder / kind) for kind, room in (("train", train), ("sweep", sweep))}
    report["notice"] = noticed(folder / "notice")
    report["pictures"] = pictures(folder / "sweep" / "runs")
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
