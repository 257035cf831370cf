"""The options that every command shares, each declared once: storage, MLflow's store, executor, workers.

A class for each concern; a command's own options inherit from those that it needs, or hold one of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pforce.base.errors import ConfigError, require
from pforce.executors.executor import Workforce, names
from pforce.executors.support.setup import Setup
from pforce.storage import Storage, default_storage, in_ray_job
from pforce.tracking import Tracker, default_uri, is_server, mask, sqlite_path
from pforce.training import Callback, Sharding

SCRATCH = "ray"
"""Folder, below a storage's root, for state that libraries keep."""


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """Where results are."""

    storage: str = field(default_factory=default_storage)
    """Where records, checkpoints, pictures and tables are: a folder, which all machines of a cluster share, or a bucket
    (s3://BUCKET/PREFIX, gs://BUCKET/PREFIX; docs/guide.md tells of servers and credentials), which needs a
    --tracking-uri. Default: $PFORCE_STORAGE, else runs."""

    @property
    def place(self) -> Storage:
        """The storage. StorageError where there is no such one."""
        return Storage.open(self.storage)

    @property
    def root(self) -> Path:
        """Folder of this machine that holds the storage, or its mirror."""
        return self.place.root


@dataclass(frozen=True, kw_only=True)
class StoreOptions(StorageOptions):
    """Where results are, and the MLflow store that shows them."""

    tracking_uri: str | None = None
    """MLflow server or database. By default a sqlite database in the storage folder; a bucket can hold none, so with
    one it must be given. Artifacts of a sqlite database are kept beside it."""

    @property
    def uri(self) -> str:
        """URI of the MLflow store. ConfigError as `tracking_uri_of`."""
        return tracking_uri_of(self.place, self.tracking_uri)

    def check(self) -> None:
        """ConfigError where there can be no MLflow store, StorageError where the storage cannot be written to."""
        tracking_uri_of(self.place, self.tracking_uri)
        self.place.check()

    @property
    def tracker(self) -> Tracker:
        """A connection to the MLflow store. ConfigError as `tracker_of`."""
        return tracker_of(self.place, self.tracking_uri)


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where work runs."""

    executor: str | None = None
    """local: this process, one piece of work after the other. processes: processes of this machine, without Ray. tune:
    Ray Tune, workers of this machine or of a cluster. groups: Ray Train, several workers per training. Default: local
    for one training, drawing or evaluation by one worker; groups where workers share a training; else tune."""
    ray_address: str | None = None
    """Ray cluster to connect to, HOST:PORT or auto. Default: $RAY_ADDRESS; without it, what needs Ray starts it on this
    machine."""

    def __post_init__(self) -> None:
        if self.executor is not None:
            require(self.executor in names(), "executor", self.executor, f"one of {', '.join(names())}")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(ExecutorOptions):
    """Where images are drawn and measured, and by how many workers."""

    workers: int = 1
    """Workers that share the images, and the cores or a GPU each. They change no number beyond rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 1, "workers", self.workers, "≥ 1")

    @property
    def workforce(self) -> Workforce:
        """The executor and its workers."""
        return Workforce(self.executor, self.workers, self.ray_address)


@dataclass(frozen=True, kw_only=True)
class Options(ExecutorOptions, StoreOptions):
    """Where and on what a sweep runs. Nothing here changes results."""

    workers: int = 1
    """Workers that share each training (Ray Train, DDP); they change no result beyond rounding. Must divide
    data.streams. Each has the cores and GPUs of --cpus-per-trial and --gpus-per-trial."""
    sharding: Sharding = "none"
    """fsdp splits weights, averages and moments over the workers (FSDP2): for models too large for one GPU."""
    spread: bool = False
    """Every worker of a trial on a node of its own."""
    collective_timeout: float = 600.0
    """Seconds after which workers that wait for another one in a training step give up; the trial then goes on at its
    last checkpoint, as an attempt. The writing of checkpoints does not count."""
    retries: int = 2
    """Further attempts at a trial whose process, node or network failed, from its last checkpoint. A divergence or
    damaged data is not tried again."""
    again: tuple[Literal["diverged"], ...] = ()
    """diverged: try trainings again that are recorded as diverged. Without it they are shown, and not run."""
    gpus_per_trial: float | None = None
    """GPUs of a trial's worker; below 1 trials share one: with 0.25 four do. By default 1 where the cluster has any."""
    cpus_per_trial: int | None = None
    """CPU cores of a trial's worker. By default the cores are shared among the trials."""
    evaluation_workers: int | None = None
    """Evaluate the cells apart, on this many workers after the trainings have ended; for many images. By default a
    trial evaluates in its own process, on its own device."""
    max_hours: float | None = None
    """Wall-clock limit; what is unfinished then goes on with the next call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.max_hours
        require(limit is None or limit > 0, "max_hours", limit, "> 0")
        workers = self.evaluation_workers
        require(workers is None or workers >= 1, "evaluation_workers", workers, "≥ 1")
        require(self.workers >= 1, "workers", self.workers, "≥ 1")
        require(self.collective_timeout > 0, "collective_timeout", self.collective_timeout, "> 0 seconds")
        require(self.retries >= 0, "retries", self.retries, "≥ 0")
        alone = "--workers 2 or more: one worker has nothing to"
        require(self.sharding == "none" or self.workers > 1, "sharding", self.sharding, f"none, or with {alone} split")
        require(not self.spread or self.workers > 1, "spread", self.spread, f"False, or with {alone} spread")


def tracking_uri_of(storage: Storage, given: str | None) -> str:
    """The MLflow store. ConfigError where none is given and the storage can hold none."""
    if given is not None:
        return given
    if storage.remote:
        raise ConfigError(
            f"tracking_uri = None: must be given with --storage {storage}, as a bucket cannot hold MLflow's database: "
            "set --tracking-uri to a server (http://HOST:5000) or to a database file (sqlite:////FOLDER/mlflow.db)"
        )
    return default_uri(storage.root)


def tracker_of(storage: Storage, given: str | None) -> Tracker:
    """A connection to the MLflow store. Artifacts of a database lie beside it: in the storage, or where it was put."""
    uri = tracking_uri_of(storage, given)
    database = sqlite_path(uri)
    if storage.remote and database is None and not is_server(uri):
        raise ConfigError(
            f"tracking_uri = {mask(uri)}: with --storage {storage} it must be a server (http://HOST:5000) or a sqlite "
            "file: artifacts of another database would lie on this machine, where no other one finds them; run `mlflow "
            "server` on that database"
        )
    folder = database.absolute().parent if storage.remote and database is not None else storage.root
    return Tracker(uri, artifacts=folder / "artifacts")


def check_folder(folder: Path, option: str) -> Path:
    """An output folder, absolute, made and written to. ConfigError naming it where that fails."""
    if in_ray_job() and not folder.is_absolute():
        raise ConfigError(
            f"{option} {folder}: is relative, and this is a Ray job, whose working directory is a copy that vanishes "
            "with it: give an absolute folder that all machines share, or leave it out (it then lies below --storage)"
        )
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {folder}: cannot be written ({error.strerror}); give another folder") from error
    return folder


def setup_of(
    o: Options, name: str, *, tasks: int, say: Callable[[str], None] = lambda line: None,
    callbacks: Sequence[Callback] = (),
) -> Setup:  # fmt: skip
    """What a sweep's options ask of an executor.

    Args:
        tasks: that could run at once.
    """
    return Setup(
        name, tasks, cpus=o.cpus_per_trial, gpus=o.gpus_per_trial, workers=o.workers,
        spread=o.spread, collective_timeout=o.collective_timeout, address=o.ray_address,
        scratch=o.root / SCRATCH, say=say, callbacks=callbacks,
    )  # fmt: skip
