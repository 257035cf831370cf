"""The folder that a training leaves: names and paths, and who may be at it.

`trainings/ID/`, ID the digest of the training, whatever its budget: `experiment.json`, `checkpoints/` and `snapshots/`
(see `pforce.training.checkpoint`), `curve/` (see `pforce.training.curve`), `wanted/` (snapshots that others ask a
running training for), and `evaluations/CELL/` with the pictures of each evaluation and the experiment that it is of.
Numbers are not in here: they are records (see `pforce.records`).
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pforce.config import Experiment, to_dict
from pforce.files import write_bytes, write_json
from pforce.parallel import Workers
from pforce.training.callbacks import WANTED

TRAININGS = "trainings"
"""Folder of all trainings, below a storage's root."""
EXPERIMENT = "experiment.json"
"""The experiment, so that checkpoints can be read without anything else."""
EVALUATIONS = "evaluations"
"""In a training's folder: a folder for each evaluation of it."""
SAMPLES = "samples.png"
MAPS = "uncertainty_maps.npz"
"""Held-out images (≤ 8, C, H, W) uint8, timesteps (T,), and σ (T, ≤ 8, h, w)."""
LOCK_SECONDS = 1.0


class TrialLocked(RuntimeError):
    """Another process runs this trial."""


def training_folder(training: str) -> str:
    """Folder of a training (its digest), below a storage's root."""
    return f"{TRAININGS}/{training}"


def evaluation_folder(folder: Path, cell: str) -> Path:
    """Folder of one evaluation of a training, by the digest of its cell."""
    return folder / EVALUATIONS / cell


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """Leave the experiment in a folder."""
    write_json(folder / EXPERIMENT, to_dict(experiment))


def ask(folder: Path, images_seen: int) -> None:
    """Ask whoever is at a training to leave a snapshot at some images seen."""
    path = folder / WANTED / str(images_seen)
    if not path.exists():
        write_bytes(path, b"", lasting=False)


@contextmanager
def only_one(folder: Path, *, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder until the block or the process ends.

    Args:
        wait: called about once a second while another process has it; without it that is TrialLocked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if wait is None:
                    message = f"{folder} is in use by another process: the same cell is being run twice"
                    raise TrialLocked(message) from error
                wait()
                time.sleep(LOCK_SECONDS)
        yield


@contextmanager
def held(workers: Workers, folder: Path, *, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """`only_one` by the first of several workers; the others wait for it, or raise what it raised."""
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(only_one(folder, wait=wait))

        workers.first_does(hold)
        yield
