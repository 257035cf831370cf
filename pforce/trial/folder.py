"""The folder that a training leaves: names and paths, and who is at it.

`trainings/ID/`, ID the digest of the training, whatever its budget: `experiment.json`, `checkpoints/` and `snapshots/`
(see `pforce.training.checkpoint`), `curve/` (see `pforce.training.curve`), `wanted/` (snapshots that others ask a
running training for), and `evaluations/CELL/` with the pictures of each evaluation and the experiment that it is of.
Numbers are not in here: they are records (see `pforce.records`).
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
from pforce.training.loop import Record

TRAININGS = "trainings"
"""Folder of all trainings, below a storage's root."""
EXPERIMENT = "experiment.json"
"""The experiment, so that checkpoints can be read without anything else."""
EVALUATIONS = "evaluations"
"""In a training's folder: a folder for each evaluation of it."""
TRAINING = "training"
"""Prefix of the leases of trainings, by their digests."""
WANTED = "wanted"
"""In a training's folder: an empty file for each snapshot that another process asks for, named by its images seen."""
SAMPLES = "samples.png"
MAPS = "uncertainty_maps.npz"
"""Held-out images (≤ 8, C, H, W) uint8, timesteps (T,), and σ (T, ≤ 8, h, w)."""


def training_folder(training: str) -> str:
    """Folder of a training (its digest), below a storage's root."""
    return f"{TRAININGS}/{training}"


def evaluation_folder(folder: Path, cell: str) -> Path:
    """Folder of one evaluation of a training, by the digest of its cell."""
    return folder / EVALUATIONS / cell


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """Leave the experiment in a folder."""
    write_json(folder / EXPERIMENT, to_dict(experiment))


def curve_of(
    folder: Path, training: Part, *, until: int, say: Callable[[str], None] = lambda line: None
) -> list[Record]:
    """The loss curve of a training, a branch's with that of its trunk before; `read_curve`.

    Args:
        folder: of the training.
    """
    branch, before = decay_of(training), []
    if branch is not None:
        before = read_curve(folder.parent / branch[0], until=min(until, branch[1]), say=say)
    return before + read_curve(folder, until=until, say=say)


def ask(storage: Storage, training: str, images_seen: int) -> None:
    """Ask whoever is at a training (its digest) to leave a snapshot at some images seen."""
    folder = f"{training_folder(training)}/{WANTED}"
    if str(images_seen) not in storage.names(folder):
        storage.put(f"{folder}/{images_seen}", b"")


def asked(storage: Storage, training: str) -> Sequence[str]:
    """Snapshots of a training (its digest) that others ask for: names of their files, which strangers may have made.
    None where a bucket does not answer."""
    try:
        return storage.names(f"{training_folder(training)}/{WANTED}")
    except StorageError:
        return ()


def answered(storage: Storage, training: str, images_seen: int) -> None:
    """The inverse of `ask`: the snapshot is there. A bucket that does not answer goes on asking."""
    with suppress(StorageError):
        storage.remove(f"{training_folder(training)}/{WANTED}/{images_seen}")


@contextmanager
def held(workers: Workers, storage: Storage, key: str, doing: str, *, wait: Wait) -> Iterator[Callable[[], None]]:
    """Hold a lease by the first of several workers; the others wait for it, or raise what it raised.

    Gives a function for the first worker that raises LeaseLost where another process has taken over.
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
