"""Options that commands share, each declared once: storage, MLflow's store, executor, workers.

There is one class per concern; a command's own options inherit from the classes that they need, or hold one of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pforce.base.errors import ConfigError, require, require_one_of
from pforce.executors.executor import Workforce, names
from pforce.executors.support.setup import Setup
from pforce.orchestration.notify import require_address
from pforce.storage import Storage, default_storage, in_ray_job
from pforce.tracking import Tracker, default_uri, is_server, local_note, mask, sqlite_path
from pforce.training import Callback, Sharding

WORKER = "worker"
"""Executor of one process among many, none of which writes to MLflow's store."""
SCRATCH = "ray"
"""Folder below a storage's root that holds the state of libraries, such as Ray."""


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """Options that say where results are."""

    storage: str = field(default_factory=default_storage)
    """Folder or bucket of records, checkpoints, pictures and tables. All machines of a cluster must share the folder. A
    bucket (s3://BUCKET/PREFIX, gs://BUCKET/PREFIX; docs/guide.md describes servers and credentials) needs
    --tracking-uri. Default: $PFORCE_STORAGE, else runs."""

    @property
    def place(self) -> Storage:
        """The storage. StorageError where it does not exist."""
        return Storage.open(self.storage)

    @property
    def root(self) -> Path:
        """Folder of this machine that holds the storage, or a mirror of the bucket."""
        return self.place.root


@dataclass(frozen=True, kw_only=True)
class StoreOptions(StorageOptions):
    """Options that say where results are, and which MLflow store shows them."""

    tracking_uri: str | None = None
    """MLflow server or database. Default: a sqlite database in the storage folder, or, where that lies on a network
    file system, on a local disk of this machine. Required with a bucket, which cannot hold a database. Artifacts that
    no server keeps are in the storage folder; with a bucket, beside the sqlite database."""

    @property
    def uri(self) -> str:
        """URI of the MLflow store. ConfigError as in `tracking_uri_of`."""
        return tracking_uri_of(self.place, self.tracking_uri)

    @property
    def local_note(self) -> str:
        """A sentence that says where the database lies, if it is not in the storage's folder by default; else empty."""
        return "" if self.tracking_uri is not None or self.place.remote else local_note(self.root)

    def check(self) -> None:
        """Raise ConfigError where a bucket has no MLflow store, StorageError where the storage is not writable."""
        tracking_uri_of(self.place, self.tracking_uri)
        self.place.check()

    @property
    def tracker(self) -> Tracker:
        """A connection to the MLflow store. ConfigError as in `tracker_of`."""
        return tracker_of(self.place, self.tracking_uri)


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Options that say where work runs."""

    executor: str | None = None
    """local: in this process, one task after the other. processes: in processes of this machine, without Ray. tune: Ray
    Tune, on this machine or a cluster. groups: Ray Train, several workers per training. worker: in this process, beside
    others like it that share the storage (`pforce worker`). Default: local for a single training, drawing or evaluation
    with one worker; groups where several workers share a training; else tune."""
    ray_address: str | None = None
    """Ray cluster to connect to, HOST:PORT or auto. Default: $RAY_ADDRESS; without it, Ray is started on this machine
    if it is needed."""
    gpu_type: str | None = None
    """Type of GPU to run on, such as H100, as Ray or the driver names it. Default: any."""

    def __post_init__(self) -> None:
        if self.executor is not None:
            require_one_of("executor", self.executor, names())


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(ExecutorOptions):
    """Options that say where images are drawn and measured, and by how many workers."""

    workers: int = 1
    """Number of workers among which the images are divided. They share the CPU cores, or have one GPU each. The number
    changes results by rounding only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers >= 1, "workers", self.workers, "≥ 1")

    @property
    def workforce(self) -> Workforce:
        """The executor and its workers."""
        return Workforce(self.executor, self.workers, self.ray_address, self.gpu_type)


@dataclass(frozen=True, kw_only=True)
class Options(ExecutorOptions, StoreOptions):
    """Options that say where and on what a sweep runs. None of them changes results."""

    workers: int = 1
    """Workers per training (Ray Train, DDP), each with the cores and GPUs of --cpus-per-trial and --gpus-per-trial.
    Must divide data.streams. The number changes results by rounding only."""
    sharding: Sharding = "none"
    """fsdp: split weights, averages and moments over the workers (FSDP2), for models too large for one GPU."""
    spread: bool = False
    """Place every worker of a trial on a different node."""
    whole_nodes: bool = False
    """Give each trial whole nodes, which no other trial shares: as few as hold its workers, whose threads get all of
    their cores. With --workers 8 on nodes of 8 GPUs each trial has one of them, with --workers 16 two. The nodes must
    be alike."""
    collective_timeout: float = 600.0
    """Seconds that workers wait for each other in a training step. Then the attempt fails, and the trial is retried
    from its last checkpoint. Time spent writing checkpoints does not count."""
    retries: int = 2
    """Further attempts at a trial whose process, node or network failed; each resumes from the last checkpoint.
    Diverged trainings and damaged data are not retried."""
    again: tuple[Literal["diverged"], ...] = ()
    """diverged: retry trainings that are recorded as diverged. By default they are shown but not run."""
    gpus_per_trial: float | None = None
    """GPUs per worker of a trial. Below 1, trials share a GPU: 0.25 lets four share one. Default: 1 where the cluster
    has GPUs, else 0."""
    cpus_per_trial: int | None = None
    """CPU cores per worker of a trial. Default: the cores are divided among the trials."""
    evaluation_workers: int | None = None
    """Evaluate the cells separately, on this many workers, after all trainings have ended: for many images. Default:
    each trial evaluates in its own process, on its own device."""
    max_hours: float | None = None
    """Wall-clock limit in hours. The same command resumes what is unfinished by then."""
    fail_fast: int | None = None
    """Begin no further trial after so many have failed for good; those that run are finished. Default: try all."""
    notify: str | None = None
    """Address that gets a JSON message when the sweep has ended, or failed: a webhook's, for example. It is tried three
    times and is never fatal; only its host is shown or kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.max_hours
        require(limit is None or limit > 0, "max_hours", limit, "> 0")
        require(self.fail_fast is None or self.fail_fast >= 1, "fail_fast", self.fail_fast, "≥ 1")
        require_address(self.notify)
        workers = self.evaluation_workers
        require(workers is None or workers >= 1, "evaluation_workers", workers, "≥ 1")
        require(self.workers >= 1, "workers", self.workers, "≥ 1")
        require(self.collective_timeout > 0, "collective_timeout", self.collective_timeout, "> 0 seconds")
        require(self.retries >= 0, "retries", self.retries, "≥ 0")
        alone = "--workers 2 or more: one worker has nothing to"
        require(self.sharding == "none" or self.workers > 1, "sharding", self.sharding, f"none, or with {alone} split")
        chosen = self.cpus_per_trial is not None and self.whole_nodes
        require(not chosen, "cpus_per_trial", self.cpus_per_trial, "left out with --whole-nodes, which takes all cores")
        require(not self.spread or self.workers > 1, "spread", self.spread, f"False, or with {alone} spread")


def tracking_uri_of(storage: Storage, given: str | None) -> str:
    """URI of the MLflow store. ConfigError where none is given and the storage is a bucket, which can hold none."""
    if given is not None:
        return given
    if storage.remote:
        raise ConfigError(
            f"tracking_uri = None: must be given with --storage {storage}, as a bucket cannot hold MLflow's database: "
            "set --tracking-uri to a server (http://HOST:5000) or to a database file (sqlite:////FOLDER/mlflow.db)"
        )
    return default_uri(storage.root)


def tracker_of(storage: Storage, given: str | None) -> Tracker:
    """A connection to the MLflow store. Artifacts that no server keeps are in the storage folder; with a bucket, beside
    the sqlite database. ConfigError for another database with a bucket."""
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
    """Create an output folder, check that it is writable, and return its absolute path. ConfigError if it is not."""
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
    """Settings of an executor as a sweep's options request them.

    Args:
        tasks: number of tasks that could run at once.
    """
    return Setup(
        name, tasks, cpus=o.cpus_per_trial, gpus=o.gpus_per_trial, workers=o.workers,
        spread=o.spread, gpu_type=o.gpu_type, whole_nodes=o.whole_nodes,
        collective_timeout=o.collective_timeout, address=o.ray_address,
        scratch=o.root / SCRATCH, say=say, callbacks=callbacks,
    )  # fmt: skip
