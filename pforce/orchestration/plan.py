"""The plan of a sweep: compared with what is already finished, before anything starts. No Ray in here."""

from __future__ import annotations

import os
import random
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from pforce.base.errors import ConfigError, require
from pforce.config import Experiment, flat_params
from pforce.data import Manifest, ensure
from pforce.executors.executor import names
from pforce.executors.support.setup import Setup
from pforce.orchestration.sweep import Sweep, Work, same_distribution_notes
from pforce.records import provenance as made
from pforce.records.lease import Contender, LeaseError, held_below
from pforce.records.ledger import Ledger
from pforce.records.parts import BFLOAT16, FLOAT32, Inputs
from pforce.records.record import Record
from pforce.records.row import divergence_of, missing_of
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.storage import Storage, default_storage, in_ray_job
from pforce.tracking import Tracker, TrackingError, default_uri, is_installed, is_server, mask, sqlite_path
from pforce.tracking.live import CATCH_UP
from pforce.training import Callback, Sharding
from pforce.trial.drawn_images import beyond_kept
from pforce.trial.folder import TRAINING, training_folder
from pforce.trial.reference import check_reference, inputs_of
from pforce.trial.where import auto_precision_on, check_data, choose_device

SCRATCH = "ray"
"""Folder, below a storage's root, for state that libraries keep."""


@dataclass(frozen=True)
class Options:
    """Where and on what a sweep runs. Nothing here changes results."""

    storage: str = field(default_factory=default_storage)
    """Where checkpoints, pictures and tables go, all below it by absolute paths: a folder, of this machine or of a
    network file system that all machines share, or a bucket: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, with
    ?endpoint_override=HOST:PORT&scheme=http or AWS_ENDPOINT_URL for S3 servers other than Amazon's, and credentials in
    every machine's environment. Default: $PFORCE_STORAGE, else runs. A bucket is worked on in a mirror below
    $PFORCE_CACHE, and needs a --tracking-uri."""
    tracking_uri: str | None = None
    """MLflow server or database. By default a sqlite database in the storage folder; a bucket can hold none, so with
    one it must be given. Artifacts of a sqlite database are kept beside it."""
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
    """GPUs of a trial's worker; below 1 trials share one. By default 1 where the cluster has any."""
    cpus_per_trial: int | None = None
    """CPU cores of a trial's worker. By default the cores are shared among the trials."""
    evaluation_workers: int | None = None
    """Evaluate the cells apart, on this many workers after the trainings have ended; for many images. By default a
    trial evaluates in its own process, on its own device."""
    max_hours: float | None = None
    """Wall-clock limit; what is unfinished then goes on with the next call."""
    executor: str | None = None
    """Where trials run. local: this process, one after the other. processes: processes of this machine, without Ray;
    with --gpus-per-trial 0.25 four share a GPU. tune: Ray Tune, on a cluster. groups: Ray Train, several workers per
    trial. Default: tune, with --workers 2 or more groups; of `pforce train` local."""
    ray_address: str | None = None
    """Cluster to connect to; by default RAY_ADDRESS, else one is started here."""

    def __post_init__(self) -> None:
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
        if self.executor is not None:
            require(self.executor in names(), "executor", self.executor, f"one of {', '.join(names())}")

    @property
    def uri(self) -> str:
        """The tracking store."""
        return tracking_uri_of(self.place, self.tracking_uri)

    @property
    def place(self) -> Storage:
        """The storage. StorageError where there is no such one."""
        return Storage.open(self.storage)

    @property
    def root(self) -> Path:
        """Folder of this machine that holds the storage, or its mirror."""
        return self.place.root


@dataclass
class Plan:
    """A sweep compared with what is already finished."""

    sweep: Sweep
    options: Options
    data: Path
    tracker: Tracker | None
    """None where MLflow is not installed, or the store is away and nothing is missing: the storage tells all."""
    inputs: Inputs
    """What the experiments read, by content."""
    work: list[Work]
    ledger: Ledger
    done: set[str]
    """Fingerprints of finished cells."""
    diverged: dict[str, Record] = field(default_factory=dict)
    """fingerprint → what is recorded of it, of cells whose training diverged; --again diverged runs them."""
    failed: dict[str, str] = field(default_factory=dict)
    """fingerprint → reason, of cells that failed when the plan was carried out."""
    notes: list[str] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)
    """Trainings that other drivers are at: those come last."""
    order: int | None = None
    """Where another driver is at this sweep, the seed of an order of its own."""

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """One of several drivers of a sweep takes its cells in order; the others each in an order of their own, so that
        they meet late, and what others are training last."""
        key = f"order/{self.sweep.identity(self.work)}"
        try:
            lease = Contender(self.options.place, key, "running the sweep in its order").try_acquire()
        except LeaseError:  # said where work is leased
            lease = None
        self.order = None if lease is not None else int.from_bytes(os.urandom(4))
        trainings = {item.training for item in self.missing}
        self.elsewhere = held_below(self.options.place, TRAINING, trainings)
        try:
            yield
        finally:
            if lease is not None:
                lease.release()

    def look(self) -> None:
        """Look up which of the other cells are finished by now, and which diverged and are not to be tried again."""
        self.ledger.refresh()
        self.done |= finished_of([item for item in self.work if item.fingerprint not in self.done], self.ledger)
        others = [item for item in self.work if item.fingerprint not in self.done]
        self.diverged = {} if "diverged" in self.options.again else divergences_of(others, self.ledger)

    def forget_divergences(self) -> None:
        """Where it was asked for, divergences count no more from here on: what comes of the new attempts does."""
        if "diverged" in self.options.again:
            for record in divergences_of(self.missing, self.ledger).values():
                self.ledger.forget(record.digest, "tried again: --again diverged", who=made.provenance())

    @property
    def missing(self) -> list[Work]:
        """What still has to run. Cells of one training follow one another late: the first of each training comes
        first, so that no trial waits for a training that another one is at while a third could be trained."""
        there: Counter[str] = Counter()
        turns = []
        work = list(self.work)
        if self.order is not None:
            random.Random(self.order).shuffle(work)  # no secret
        for item in work:
            if item.fingerprint not in self.done and item.fingerprint not in self.diverged:
                turns.append((item.training in self.elsewhere, there[item.training], item))
                there[item.training] += 1
        return [item for *_, item in sorted(turns, key=lambda turn: turn[:2])]


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


def _reads(experiment: Experiment) -> tuple[object, ...]:
    """What a sweep reads once for all of its cells."""
    e = experiment.evaluation
    return experiment.data, e.detector, e.detector_weights, e.reference


def check_workers(experiment: Experiment, workers: int) -> None:
    """ConfigError where so many workers cannot share the experiment's batches."""
    streams, training = experiment.data.streams, experiment.training
    if streams % workers:
        fitting = ", ".join(str(n) for n in range(1, streams + 1) if streams % n == 0)
        raise ConfigError(f"--workers {workers}: must divide data.streams = {streams}: one of {fitting}")
    share = training.batch // workers
    if share % training.accumulation:
        raise ConfigError(
            f"training.accumulation = {training.accumulation}: must divide a worker's share of the batch, "
            f"{training.batch} / {workers} = {share}"
        )


def auto_precision(options: Options) -> str:
    """What `training.precision = auto` is: bfloat16 where the workers have GPUs that compute in it, as far as this
    process can know before any worker starts."""
    if options.gpus_per_trial is not None:
        return BFLOAT16 if options.gpus_per_trial > 0 else FLOAT32
    return auto_precision_on(choose_device())


def plan(sweep: Sweep, options: Options, console: Console) -> Plan:
    """Check storage, every cell against the data, and tracking, and look up which cells are done. Starts no worker."""

    def say(line: str) -> None:
        console.print(f"warning: {line}", markup=False, soft_wrap=True, highlight=False)

    if is_installed():
        tracking_uri_of(options.place, options.tracking_uri)
    options.place.check()
    folder = ensure(sweep.base.data, progress=console.is_terminal).absolute()  # workers have another directory
    manifest = Manifest.load(folder)
    manifest.check(folder)
    detector = sweep.base.evaluation.load_detector()
    checked: set[tuple[object, ...]] = set()
    for cell in sweep.cells():
        experiment = cell.experiment
        if _reads(experiment) != _reads(sweep.base):
            raise ConfigError(
                "data, evaluation.detector and evaluation.reference cannot be axes; run one sweep for each of their "
                "values"
            )
        what = (experiment.model, experiment.data, experiment.training)
        if what not in checked:  # cells that differ in neither need no second look
            check_workers(experiment, options.workers)
            check_data(experiment, folder, manifest, detector)
            checked.add(what)
    check_reference(sweep.base.evaluation, detector)
    inputs = inputs_of(sweep.base.evaluation, manifest, detector, auto=auto_precision(options))
    work, ledger = sweep.work(inputs), Ledger(options.place, say)
    notes = same_distribution_notes(work)
    beyond = beyond_kept(max(item.experiment.evaluation.images for item in work), detector)
    notes += [beyond] if beyond else []
    if sweep.base.training.precision == "auto" and options.ray_address and inputs.auto == FLOAT32:
        notes.append(
            "precision auto is float32, as this machine has no GPU; where the cluster's workers have some, give "
            "--gpus-per-trial, or --set training.precision=bfloat16"
        )
    planned = Plan(sweep, options, folder, None, inputs, work, ledger, set(), notes=notes)
    planned.look()
    if not is_installed():
        notes.append("MLflow is not installed here: results are in the storage, and `pforce mirror` shows them")
        return planned
    try:
        planned.tracker = tracker_of(options.place, options.tracking_uri)
        planned.tracker.check()
    except TrackingError as error:
        if planned.missing:  # what it would train is not begun: the address may be wrong
            raise
        planned.tracker = None
        notes.append(f"{error}. {CATCH_UP[0].upper()}{CATCH_UP[1:]}")
    return planned


def finished_of(work: list[Work], ledger: Ledger) -> set[str]:
    """Fingerprints of the cells of which every part has a record."""
    return {item.fingerprint for item in work if missing_of(item.parts, ledger) == []}


def divergences_of(work: list[Work], ledger: Ledger) -> dict[str, Record]:
    """Fingerprint → what is recorded of it, of the cells whose training diverged."""
    found = ((item.fingerprint, divergence_of(item.parts, ledger)) for item in work)
    return {fingerprint: record for fingerprint, record in found if record is not None}


def provenance() -> dict[str, str]:
    """Tags of every run: versions, and the git commit of this code where it is a checkout."""
    tags = {**made.versions(), "mlflow.user": made.user()}
    code = made.code()
    if code:
        tags["mlflow.source.git.commit"] = code["commit"]
        # A name cannot see edited code; at least the record does.
        tags["git.uncommitted_changes"] = str("changes" in code)
    return tags


def this_command() -> str:
    """What was called, as a shell takes it, passwords masked."""
    return mask(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def entry_of(item: Work) -> CellEntry:
    """A cell as the sweep's file tells it."""
    return CellEntry.of(item.label, item.parts, flat_params(item.experiment), item.experiment.seed)


def sweep_entry(planned: Plan) -> SweepEntry:
    """Which cells a sweep is of, as its file tells it."""
    cells, sweep = [entry_of(item) for item in planned.work], planned.sweep
    return SweepEntry(sweep.name, sweep.identity(planned.work), cells, command=this_command(), user=made.user())


def trial_folder(options: Options, item: Work) -> Path:
    """Folder of a training."""
    return options.root / training_folder(item.training)


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
