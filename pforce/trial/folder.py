"""The folder of a training: its names and paths, requests for snapshots, and its lease.

`trainings/ID/`, where ID is the digest of the training, whatever its budget, holds `experiment.json`, `checkpoints/`
and `snapshots/` (see `pforce.training.checkpoint`), `curve/` (see `pforce.training.curve`), `wanted/` (snapshots that
other processes ask a running training for), and `evaluations/CELL/` with the pictures of each evaluation and its
experiment. Results are not in here: they are records (see `pforce.records`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pforce.base.files import write_json
from pforce.config import Experiment, to_dict
from pforce.parallel import Workers
from pforce.records.lease import Lease, Wait, leased
from pforce.records.parts import Part, decay_of
from pforce.storage import Storage, StorageError
from pforce.training.curve import read_curve
from pforce.training.window import Record

TRAININGS = "trainings"
"""Folder of all trainings below a storage's root."""
EXPERIMENT = "experiment.json"
"""File of the experiment, so that checkpoints can be read without anything else."""
EVALUATIONS = "evaluations"
"""Folder in a training's folder, with one folder per evaluation."""
TRAINING = "training"
"""Prefix of the keys of trainings' leases, followed by the digest."""
WANTED = "wanted"
"""Folder in a training's folder, with one empty file per snapshot that another process asks for, named by its images
seen."""
SAMPLES = "samples.png"
MAPS = "uncertainty_maps.npz"
"""File with maps of predicted uncertainty: held-out images (≤ 8, C, H, W) uint8, timesteps (T,), and σ (T, ≤ 8, h,
w)."""


def training_folder(training: str) -> str:
    """Folder of a training (its digest) below a storage's root."""
    return f"{TRAININGS}/{training}"


def evaluation_folder(folder: Path, cell: str) -> Path:
    """Folder of one evaluation of a training, by the digest of its cell."""
    return folder / EVALUATIONS / cell


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """Write the experiment into a folder."""
    write_json(folder / EXPERIMENT, to_dict(experiment))


def curve_of(
    folder: Path, training: Part, *, until: int, say: Callable[[str], None] = lambda line: None
) -> list[Record]:
    """The loss curve of a training; a branch's curve begins with its trunk's. See `read_curve`.

    Args:
        folder: folder of the training.
    """
    branch, before = decay_of(training), []
    if branch is not None:
        before = read_curve(folder.parent / branch[0], until=min(until, branch[1]), say=say)
    return before + read_curve(folder, until=until, say=say)


def ask(storage: Storage, training: str, images_seen: int) -> None:
    """Ask the process that runs a training (its digest) to write a snapshot at some images seen."""
    folder = f"{training_folder(training)}/{WANTED}"
    if str(images_seen) not in storage.names(folder):
        storage.put(f"{folder}/{images_seen}", b"")


def asked(storage: Storage, training: str) -> Sequence[str]:
    """Snapshots of a training (its digest) that other processes ask for: names of their files, which are not to be
    trusted. Empty where a bucket does not answer."""
    try:
        return storage.names(f"{training_folder(training)}/{WANTED}")
    except StorageError:
        return ()


def answered(storage: Storage, training: str, images_seen: int) -> None:
    """Withdraw the request of `ask`, because the snapshot is there. Where a bucket does not answer, the request
    stays."""
    with suppress(StorageError):
        storage.remove(f"{training_folder(training)}/{WANTED}/{images_seen}")


@contextmanager
def held(workers: Workers, storage: Storage, key: str, doing: str, *, wait: Wait) -> Iterator[Callable[[], None]]:
    """Hold a lease on the first of several workers; the others wait for it, or raise the same error.

    Yields a function that raises LeaseLost on the first worker where another process has taken over.
    """
    with ExitStack() as stack:
        leases: list[Lease] = []

        def hold() -> None:
            leases.append(stack.enter_context(leased(storage, key, doing, wait=wait)))

        def check() -> None:
            for lease in leases:
                lease.check()

        workers.first_does(hold)
        yield check
