"""The plan of a sweep: held against the ledger before anything starts. No Ray in here."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from pforce.config import ConfigError, Experiment, to_dict
from pforce.data import ensure
from pforce.orchestration.placement import Placement
from pforce.orchestration.sweep import Sweep, Work, same_distribution_notes
from pforce.orchestration.worker import Payload
from pforce.references import check_reference, inputs_of
from pforce.tracking import Tracker, default_uri
from pforce.trial import check_data
from pforce.validation import require

DONE, SOME_FAILED, STOPPED = 0, 3, 4
"""Exit codes of a sweep."""


@dataclass(frozen=True)
class Options:
    """Where and on what a sweep runs. Nothing here changes results."""

    storage: Path = Path("runs")
    """Folder of the MLflow database, checkpoints, pictures and tables."""
    tracking_uri: str | None = None
    """MLflow server or database; by default a sqlite database in the storage folder."""
    gpus_per_trial: float | None = None
    """GPUs of a trial; below 1 trials share one. By default 1 where the cluster has any."""
    cpus_per_trial: int | None = None
    """CPU cores of a trial. By default the cores are shared among the trials."""
    evaluation_workers: int | None = None
    """Evaluate the cells apart, on this many workers after the trainings have ended; for many images. By default a
    trial evaluates in its own process, on its own device."""
    max_hours: float | None = None
    """Wall-clock limit; what is unfinished then goes on with the next call."""
    ray_address: str | None = None
    """Cluster to connect to; by default RAY_ADDRESS, else one is started here."""

    def __post_init__(self) -> None:
        limit = self.max_hours
        require(limit is None or limit > 0, "max_hours", limit, "> 0")
        workers = self.evaluation_workers
        require(workers is None or workers >= 1, "evaluation_workers", workers, "≥ 1")

    @property
    def uri(self) -> str:
        """The tracking store."""
        return self.tracking_uri or default_uri(self.storage)


@dataclass
class Plan:
    """A sweep held against the ledger."""

    sweep: Sweep
    options: Options
    data: Path
    tracker: Tracker
    inputs: dict[str, str]
    """Content hashes of what the experiments read: data set, detector."""
    work: list[Work]
    done: set[str]
    """Fingerprints of finished cells."""
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[Work]:
        """What still has to run."""
        return [item for item in self.work if item.fingerprint not in self.done]


def check_storage(folder: Path, option: str = "--storage") -> Path:
    """The absolute storage folder, made and written to. ConfigError naming it where that fails."""
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


def plan(sweep: Sweep, options: Options, console: Console) -> Plan:
    """Check storage, every cell against the data, and tracking, and look up which cells are done. Starts no worker."""
    check_storage(options.storage)
    folder = ensure(sweep.base.data, progress=console.is_terminal).absolute()  # workers have another directory
    detector = sweep.base.evaluation.load_detector()
    for cell in sweep.cells():
        if _reads(cell.experiment) != _reads(sweep.base):
            raise ConfigError(
                "data, evaluation.detector and evaluation.reference cannot be axes; run one sweep for each of their "
                "values"
            )
        manifest = check_data(cell.experiment, folder, detector)
    check_reference(sweep.base.evaluation, detector)
    inputs = inputs_of(sweep.base.evaluation, manifest, detector)
    tracker = Tracker(options.uri, artifacts=options.storage.absolute() / "artifacts")
    work = sweep.work(inputs)
    done = set(tracker.finished([item.fingerprint for item in work]))
    return Plan(sweep, options, folder, tracker, inputs, work, done, same_distribution_notes(work))


def provenance() -> dict[str, str]:
    """Tags of every run: versions, and the git commit of this code where it is a checkout."""
    tags = {f"version.{name}": importlib.metadata.version(name) for name in ("pforce", "torch", "ray", "mlflow")}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and shutil.which("git"):
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
        changed = subprocess.run(["git", "status", "-s", "-uno"], cwd=root, capture_output=True, text=True, check=False)
        tags["mlflow.source.git.commit"] = commit.stdout.strip()
        # A fingerprint cannot see edited code; at least the record does.
        tags["git.uncommitted_changes"] = str(bool(changed.stdout.strip()))
    return tags


def trial_folder(options: Options, item: Work) -> Path:
    """Folder of a training, named by what determines its weights."""
    return options.storage.absolute() / "trials" / item.training


def payload(plan: Plan, item: Work, placement: Placement) -> Payload:
    """A cell as its worker gets it."""
    return Payload(
        fingerprint=item.fingerprint,
        training=item.training,
        experiment=to_dict(item.experiment),
        data=str(plan.data),
        data_hash=plan.inputs["data"],
        reference_cache=str(plan.options.storage.absolute() / "references"),
        folder=str(trial_folder(plan.options, item)),
        device="cuda" if placement.gpus else "cpu",
        train_only=plan.options.evaluation_workers is not None,
        threads=placement.cpus,
        devices=placement.devices,
    )
