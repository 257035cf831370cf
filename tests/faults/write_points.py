"""Kills a trial at its writes: a helper process that forks a trial for each of them, so that torch is imported once.

    python -m tests.faults.write_points FOLDER RANDOM

Every write below the storage (a file opened for writing, a rename, a link, a removal, a folder made) is numbered, by
an audit hook of Python. Those that differ in more than hashes, numbers and scratch names are write points: a trial is
killed (SIGKILL) right before the first write of each, and at RANDOM others; then the same trial is run to its end.
Prints JSON: the write points, and what each continued trial gave.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pforce.config import Experiment, with_fields
from pforce.records.ledger import Ledger
from pforce.storage import Storage
from pforce.training.curve import read_curve
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.faults.drills import SEED
from tests.training.conftest import DATA, tiny

WRITES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")


def experiment(**fields: object) -> Experiment:
    """Six steps with a checkpoint at every second one and a snapshot on the way, 8 images, one timestep."""
    small = {
        "training.checkpoint_every": 2, "training.log_every": 2, "training.snapshots": (48,), "evaluation.images": 8,
        "evaluation.held_out_images": 8, "evaluation.difficulty_timesteps": [0.2],
        "sampler.num_function_evaluations": 1,
    }  # fmt: skip
    return with_fields(tiny(6), {**small, **fields})


def point_of(event: str, path: str) -> str:
    """A write without the names that are made up at random."""
    text = re.sub(r"[0-9a-f]{16,}", "H", path)
    text = re.sub(r"\.tmp_\w+", "T", text)
    text = re.sub(r"^(records|files)/[0-9a-f]{2}(?=/|$)", r"\1/G", text)
    if text.endswith("/T") and event not in ("os.link", "os.rename"):
        text = "T"  # the scratch folder or file of the one function that writes
    # Of a training's own files each is a point: what is written at its end is not what is written on the way.
    return f"{event} {text if text.startswith('trainings/') else re.sub(r'[0-9]+', 'N', text)}"


def watch(root: Path, seen: Callable[[str, str], None]) -> None:
    """Call a function before each write below a folder."""
    below = f"{root}/"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event not in WRITES:
            return
        path = str(arguments[0])
        if path.startswith(below):
            seen(event, path.removeprefix(below))

    sys.addaudithook(hook)


def in_child(work: Callable[[], Any], out: Path) -> int:
    """Do it in a fork, which leaves its result as JSON. Minus its exit status, or the signal that it died of."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            out.write_text(json.dumps(work()))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def trial(root: Path) -> dict[str, Any]:
    """Run the trial; what must be the same whatever happened before."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = run_trial(experiment(), Paths(DATA, Storage.open(root)), Where(torch.device("cpu")))
        said += [str(each.message) for each in caught if "pforce" in each.filename]
    assert row is not None
    (folder,) = (root / "trainings").iterdir()
    problems: list[str] = []
    ledger = Ledger(Storage.open(root), problems.append)
    kinds = sorted(record.kind for record in ledger.all())
    return {
        "metrics": {name: value for name, value in row.metrics.items() if not name.startswith(("cost/", "through"))},
        "curve": [[p.images_seen, p.loss, p.gradient_norm] for p in read_curve(folder, say=problems.append)],
        "snapshots": sorted(path.name for path in (folder / "snapshots").iterdir() if path.name.isdecimal()),
        "kinds": kinds,
        "took": row.metrics["cost/training_seconds"] > 0,
        "said": said + problems,
    }


def main() -> None:
    folder, extra = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    out, writes = folder / "out.json", folder / "writes.json"

    def undisturbed() -> dict[str, Any]:
        listed: list[str] = []
        watch(folder / "whole", lambda event, path: listed.append(point_of(event, path)))
        found = trial(folder / "whole")
        writes.write_text(json.dumps(listed))
        return found

    trial(folder / "first")  # what is made once in a process is made before it is forked
    assert in_child(undisturbed, out) == 0
    expected, listed = json.loads(out.read_text()), json.loads(writes.read_text())
    first = {point: number for number, point in reversed(list(enumerate(listed, start=1)))}
    chosen = sorted({*first.values(), *random.Random(SEED).sample(range(1, len(listed) + 1), extra)})
    found = []
    for number in chosen:
        root, count = folder / str(number), [0]

        def killed(root: Path = root, number: int = number, count: list[int] = count) -> None:
            def seen(event: str, path: str) -> None:
                count[0] += 1
                if count[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            watch(root, seen)
            trial(root)

        died = in_child(killed, out)
        ended = in_child(lambda root=root: trial(root), out)
        found.append({"point": listed[number - 1], "died": died, "ended": ended, "found": json.loads(out.read_text())})
        shutil.rmtree(root)
    print(json.dumps({"points": sorted(first), "writes": len(listed), "expected": expected, "killed": found}))


if __name__ == "__main__":
    main()
