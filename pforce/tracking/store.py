"""Writing to MLflow: a parent run a sweep, a child run a trial, and the ledger of finished cells.

Only a sweep's driver writes. A trial is known by the fingerprint of its experiment, kept as a tag; a run that
was killed is taken up again, not made twice. The ledger is the store itself: a cell is done when it has a
FINISHED run with its fingerprint.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pforce.tracking.checks import (
    TrackingError,
    check_store,
    check_writable,
    is_database,
    is_server,
    mask,
    sqlite_path,
    sqlite_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

PARENT = "mlflow.parentRunId"
METRICS_A_CALL = 1000
IMAGES_SEEN = "train/images_seen"
STALE_SECONDS = 600
PARAMS_A_CALL = 100

TAG_LENGTH = 4000

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tags:
    """Names of the tags that pforce sets."""

    FINGERPRINT = "pforce.fingerprint"
    TRAINING = "pforce.training"
    """Fingerprint of the training: names the folder of its checkpoints."""
    TRUNK = "pforce.trunk"
    """Fingerprint of the training that this one branches off from."""
    SWEEP = "pforce.sweep"
    KIND = "pforce.kind"
    SEED = "pforce.seed"
    REASON = "reason"
    ERROR = "error"
    WARNING = "warning"
    ATTEMPTS = "pforce.attempts"
    """How often a trial was begun within one sweep, where that is more than once."""
    RETRIED = "pforce.retried"
    """Why it was begun again."""
    OPENED = "pforce.opened"
    """The operations that opened this run: by it a run is found whose making was never confirmed."""
    COMMAND = "pforce.command"
    """Of a sweep: what was called when it was first run."""
    REUSED = "pforce.reused"
    """Of a sweep: fingerprints of finished runs of other sweeps that are part of its table."""


class RunSpec(NamedTuple):
    """What a child run is made from."""

    name: str
    fingerprint: str
    params: Mapping[str, object]
    tags: Mapping[str, str]


def default_uri(storage: Path) -> str:
    """The sqlite database below a storage folder."""
    return sqlite_uri(storage.resolve() / "mlflow.db")


@dataclass(frozen=True)
class SweepRun:
    """The parent run of a sweep."""

    experiment_id: str
    run_id: str


def _make_database(uri: str) -> None:
    """Make a sqlite database that is not there, whole or not at all: MLflow's own takes seconds, and a process that is
    killed meanwhile would leave one that looks like an older version's."""
    path = sqlite_path(uri)
    if path is None or path.exists():
        return
    import mlflow

    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        mlflow.MlflowClient(tracking_uri=sqlite_uri(scratch)).search_experiments(max_results=1)
        try:
            path.hardlink_to(scratch)
        except FileExistsError:  # another process was quicker
            pass
        except OSError:  # a file system without such links, where one of two that make it at once may lose a race
            scratch.rename(path)
    for left in path.parent.glob(".mlflow-*"):  # by killed processes
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


class Tracker:
    """A connection to one MLflow store. TrackingError where it does not answer or cannot be written."""

    def __init__(self, uri: str, *, artifacts: Path) -> None:
        self.uri = uri
        path = sqlite_path(uri)
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrackingError(f"tracking database {uri}: cannot make {path.parent}: {error}") from error
        self.artifacts = artifacts
        check_store(uri)
        import mlflow

        try:
            _make_database(uri)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            if not is_server(uri):  # the check has just asked a server the same
                self.client.search_experiments(max_results=1)
        except Exception as error:  # every kind of store raises its own; all mean that it cannot be used
            raise TrackingError(
                f"tracking store {self.shown} cannot be used: {error}. Check the URI (--tracking-uri) and its "
                "permissions."
            ) from error

    @property
    def shown(self) -> str:
        """The URI as messages name it: without a password."""
        return mask(self.uri)

    def check(self, name: str) -> None:
        """TrackingError where a sweep of this name cannot be written: database locked, experiment deleted."""
        from mlflow.exceptions import MlflowException

        check_writable(self.uri)
        try:
            self._experiment(name)
        except MlflowException as error:
            raise TrackingError(
                f"tracking store {self.shown} cannot be read: {error}. Check --tracking-uri."
            ) from error

    def _experiment(self, name: str) -> str | None:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {name} was deleted in {self.shown}: restore it there, or choose another --name"
            )
        return None if experiment is None else str(experiment.experiment_id)

    # --- the ledger -------------------------------------------------------------------------------------------

    def finished(self, fingerprints: Sequence[str]) -> dict[str, Run]:
        """Of these cells, the finished ones: fingerprint → its newest FINISHED run, wherever it was made."""
        return self._by_fingerprint(fingerprints, "attributes.status = 'FINISHED'")

    def recorded(self, sweep: str, fingerprints: Sequence[str]) -> dict[str, int]:
        """Of these cells, those with an unfinished run in the sweep: fingerprint → images seen at the last point of
        its curve."""
        experiment_id = self._experiment(sweep)
        if experiment_id is None:
            return {}
        runs = self._by_fingerprint(fingerprints, "attributes.status != 'FINISHED'", experiment_id)
        return {key: int(run.data.metrics.get(IMAGES_SEEN, 0)) for key, run in runs.items()}

    def running(self, sweep: str, fingerprints: Sequence[str]) -> set[str]:
        """Of these cells, those whose run in the sweep has not ended."""
        experiment_id = self._experiment(sweep)
        if experiment_id is None or not fingerprints:
            return set()
        return set(self._by_fingerprint(fingerprints, "attributes.status = 'RUNNING'", experiment_id))

    def _by_fingerprint(
        self, fingerprints: Sequence[str], condition: str, experiment_id: str | None = None
    ) -> dict[str, Run]:
        from mlflow.entities import ViewType

        wanted = set(fingerprints)
        ids = [experiment_id] if experiment_id else [e.experiment_id for e in self.client.search_experiments()]
        found: dict[str, Run] = {}
        token: str | None = None
        while ids:
            page = self.client.search_runs(
                ids,
                filter_string=f"tags.`{Tags.KIND}` = 'trial'" + (f" and {condition}" if condition else ""),
                run_view_type=ViewType.ACTIVE_ONLY,
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            for run in page:
                fingerprint = run.data.tags.get(Tags.FINGERPRINT, "")
                if fingerprint in wanted:
                    found.setdefault(fingerprint, run)
            token = page.token
            if not token:
                break
        return found

    def is_open(self, name: str, identity: str) -> bool:
        """Whether the sweep's own run is there and has not ended."""
        experiment_id = self._experiment(name)
        return experiment_id is not None and any(
            run.info.status == "RUNNING" for run in self._parents(experiment_id, identity)
        )

    def _parents(self, experiment_id: str, identity: str) -> list[Run]:
        condition = f"tags.`{Tags.SWEEP}` = '{identity}' and tags.`{Tags.KIND}` = 'sweep'"
        return list(self.client.search_runs([experiment_id], condition, order_by=["attributes.start_time ASC"]))

    # --- a sweep ----------------------------------------------------------------------------------------------

    def open_sweep(
        self, name: str, identity: str, tags: Mapping[str, str], *, operation: str = "", started: int | None = None
    ) -> SweepRun:
        """The parent run of this sweep: the one that is there, set to RUNNING again, or a new one.

        Args:
            operation, started: as of `open_trial`.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self._open_sweep(name, identity, tags, operation, started)
        except MlflowException as error:
            raise TrackingError(
                f"tracking store {self.shown} cannot be written: {error}. Check its permissions."
            ) from error

    def _open_sweep(
        self, name: str, identity: str, tags: Mapping[str, str], operation: str, started: int | None
    ) -> SweepRun:
        experiment_id = self._experiment(name)
        if experiment_id is None:
            location = (self.artifacts / name).resolve().as_uri() if is_database(self.uri) else None
            # Of the kinds that MLflow knows, the one whose page opens on runs and their charts.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            experiment_id = str(self.client.create_experiment(name, artifact_location=location, tags=kind))
        there = self._parents(experiment_id, identity)
        if there:
            run_id = there[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            self._opened(there[0], operation)
        else:
            all_tags = {**tags, Tags.SWEEP: identity, Tags.KIND: "sweep", Tags.OPENED: operation}
            run = self.client.create_run(experiment_id, start_time=started, run_name=name, tags=all_tags)
            run_id = run.info.run_id
        return SweepRun(experiment_id, run_id)

    def open_trial(self, sweep: SweepRun, spec: RunSpec, *, operation: str = "", started: int | None = None) -> str:
        """The child run of a cell: the unfinished one that is there, set to RUNNING again, or a new one.

        Args:
            operation: a word that nothing else has. Opened again with it, the run is the same, even if it has
                finished since: so an opening whose answer was lost is neither lost nor made twice.
            started: of a new run; milliseconds since 1970, now by default.
        """
        from mlflow.entities import Param

        there = next(iter(self.opened_by(sweep.experiment_id, operation)), None)
        if there is None:
            # A finished run is a record: it is neither opened again nor moved below another sweep.
            condition = f"tags.`{Tags.FINGERPRINT}` = '{spec.fingerprint}' and attributes.status != 'FINISHED'"
            there = self._by_fingerprint([spec.fingerprint], condition, sweep.experiment_id).get(spec.fingerprint)
        tags = {**spec.tags, PARENT: sweep.run_id, Tags.FINGERPRINT: spec.fingerprint, Tags.KIND: "trial"}
        if there is None:
            tags[Tags.OPENED] = operation
            run = self.client.create_run(sweep.experiment_id, start_time=started, run_name=spec.name, tags=tags)
            run_id = run.info.run_id
        else:
            run_id = there.info.run_id
            if there.info.status != "FINISHED":
                self.client.update_run(run_id, status="RUNNING")
            for stale in (Tags.REASON, Tags.ERROR, Tags.ATTEMPTS, Tags.RETRIED):
                if stale in there.data.tags:
                    self.client.delete_tag(run_id, stale)
            self.tag(run_id, tags)  # the versions and the commit that continue it
            self._opened(there, operation)
        # A run whose driver died between these calls lacks its parameters; one that has them is not changed.
        has = {} if there is None else there.data.params
        params = [Param(key, str(value)) for key, value in spec.params.items() if key not in has]
        for first in range(0, len(params), PARAMS_A_CALL):
            self.client.log_batch(run_id, params=params[first : first + PARAMS_A_CALL])
        return run_id

    def _opened(self, run: Run, operation: str) -> None:
        """Note that the run was opened by an operation."""
        before = run.data.tags.get(Tags.OPENED, "")
        if operation and operation not in before.split():
            room = TAG_LENGTH - len(operation) - 1
            self.tag(run.info.run_id, {Tags.OPENED: f"{before[-room:]} {operation}".strip()})

    def opened_by(self, experiment_id: str, operation: str) -> list[Run]:
        """The runs that an operation opened: one, or more where the answer to a creation was lost."""
        if not operation:
            return []
        condition = f"tags.`{Tags.OPENED}` LIKE '%{operation}%'"
        return list(self.client.search_runs([experiment_id], condition, order_by=["attributes.start_time ASC"]))

    def remove_others(self, experiment_id: str, operation: str, run_id: str) -> None:
        """Delete what an operation made besides this run: a server answered its first attempt too late."""
        for run in self.opened_by(experiment_id, operation):
            if run.info.run_id != run_id:
                self.client.delete_run(run.info.run_id)

    def log(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Metrics at a step (images seen, for curves)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.log_points(run_id, [Metric(key, float(value), now, step) for key, value in metrics.items()])

    def log_points(self, run_id: str, rows: Sequence[Metric]) -> None:
        """Points of curves. One that is there already (name, timestamp, step and value) is not written again."""
        for first in range(0, len(rows), METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=list(rows[first : first + METRICS_A_CALL]))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags; values over MLflow's limit are cut."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value[:TAG_LENGTH]) for key, value in tags.items()])

    def tags(self, run_id: str) -> dict[str, str]:
        """A run's tags."""
        return dict(self.client.get_run(run_id).data.tags)

    def status(self, run_id: str) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        return str(self.client.get_run(run_id).info.status)

    def artifact(self, run_id: str, path: Path) -> None:
        """Copy a file into the run's artifacts."""
        self.client.log_artifact(run_id, str(path))

    def close(self, run_id: str, status: Status, *, ended: int | None = None) -> None:
        """End a run, at a time in milliseconds since 1970 (now by default)."""
        self.client.set_terminated(run_id, status=status, end_time=ended)
