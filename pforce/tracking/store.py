"""Writing to MLflow: a parent run a sweep, a child run a trial, and the ledger of finished cells.

Only a sweep's driver writes. A trial is known by the fingerprint of its experiment, kept as a tag; a run that
was killed is taken up again, not made twice. The ledger is the store itself: a cell is done when it has a
FINISHED run with its fingerprint.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

# MLflow reports usage over the network unless told not to before its import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)

PARENT = "mlflow.parentRunId"
METRICS_A_CALL = 1000
PARAMS_A_CALL = 100

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingError(RuntimeError):
    """The tracking store cannot be used. The message names it and the cure."""


class Tags:
    """Names of the tags that pforce sets."""

    FINGERPRINT = "pforce.fingerprint"
    TRAINING = "pforce.training"
    """Fingerprint of the training: names the folder of its checkpoints."""
    SWEEP = "pforce.sweep"
    KIND = "pforce.kind"
    SEED = "pforce.seed"
    REASON = "reason"
    ERROR = "error"
    WARNING = "warning"
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
    return f"sqlite:///{storage.resolve() / 'mlflow.db'}"


@dataclass(frozen=True)
class SweepRun:
    """The parent run of a sweep."""

    experiment_id: str
    run_id: str


class Tracker:
    """A connection to one MLflow store. TrackingError where it does not answer or cannot be written."""

    def __init__(self, uri: str, *, artifacts: Path) -> None:
        self.uri = uri
        if uri.startswith("sqlite:///"):
            folder = Path(uri.removeprefix("sqlite:///")).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrackingError(f"tracking database {uri}: cannot make {folder}: {error}") from error
        self.artifacts = artifacts
        try:
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            self.client.search_experiments(max_results=1)
        except Exception as error:  # every kind of store raises its own; all mean that it cannot be used
            raise TrackingError(
                f"tracking store {uri} cannot be used: {error}. Check the URI (--tracking-uri) and its permissions."
            ) from error

    # --- the ledger -------------------------------------------------------------------------------------------

    def finished(self, fingerprints: Sequence[str]) -> dict[str, Run]:
        """Of these cells, the finished ones: fingerprint → its newest FINISHED run, wherever it was made."""
        return self._by_fingerprint(fingerprints, "attributes.status = 'FINISHED'")

    def _by_fingerprint(
        self, fingerprints: Sequence[str], condition: str, experiment_id: str | None = None
    ) -> dict[str, Run]:
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

    # --- a sweep ----------------------------------------------------------------------------------------------

    def open_sweep(self, name: str, identity: str, tags: Mapping[str, str]) -> SweepRun:
        """The parent run of this sweep: the one that is there, set to RUNNING again, or a new one."""
        try:
            return self._open_sweep(name, identity, tags)
        except MlflowException as error:
            raise TrackingError(
                f"tracking store {self.uri} cannot be written: {error}. Check its permissions."
            ) from error

    def _open_sweep(self, name: str, identity: str, tags: Mapping[str, str]) -> SweepRun:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {name} was deleted in {self.uri}: restore it there, or choose another --name"
            )
        if experiment is None:
            location = (self.artifacts / name).resolve().as_uri() if self.uri.startswith("sqlite") else None
            # Of the kinds that MLflow knows, the one whose page opens on runs and their charts.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            experiment_id = self.client.create_experiment(name, artifact_location=location, tags=kind)
        else:
            experiment_id = experiment.experiment_id
        there = self.client.search_runs(
            [experiment_id], filter_string=f"tags.`{Tags.SWEEP}` = '{identity}' and tags.`{Tags.KIND}` = 'sweep'"
        )
        if there:
            run_id = there[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
        else:
            all_tags = {**tags, Tags.SWEEP: identity, Tags.KIND: "sweep"}
            run_id = self.client.create_run(experiment_id, run_name=name, tags=all_tags).info.run_id
        return SweepRun(experiment_id, run_id)

    def open_trial(self, sweep: SweepRun, spec: RunSpec) -> str:
        """The child run of a cell: the unfinished one that is there, set to RUNNING again, or a new one."""
        # A finished run is a record: it is neither opened again nor moved below another sweep.
        condition = f"tags.`{Tags.FINGERPRINT}` = '{spec.fingerprint}' and attributes.status != 'FINISHED'"
        there = self._by_fingerprint([spec.fingerprint], condition, sweep.experiment_id).get(spec.fingerprint)
        tags = {**spec.tags, PARENT: sweep.run_id, Tags.FINGERPRINT: spec.fingerprint, Tags.KIND: "trial"}
        if there is None:
            run_id = self.client.create_run(sweep.experiment_id, run_name=spec.name, tags=tags).info.run_id
        else:
            run_id = there.info.run_id
            self.client.update_run(run_id, status="RUNNING")
            for stale in (Tags.REASON, Tags.ERROR):
                if stale in there.data.tags:
                    self.client.delete_tag(run_id, stale)
            self.tag(run_id, tags)  # the versions and the commit that continue it
        # A run whose driver died between these calls lacks its parameters; one that has them is not changed.
        has = {} if there is None else there.data.params
        params = [Param(key, str(value)) for key, value in spec.params.items() if key not in has]
        for first in range(0, len(params), PARAMS_A_CALL):
            self.client.log_batch(run_id, params=params[first : first + PARAMS_A_CALL])
        return run_id

    def log(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Metrics at a step (images seen, for curves)."""
        now = int(time.time() * 1000)
        rows = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        for first in range(0, len(rows), METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=rows[first : first + METRICS_A_CALL])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags; values over MLflow's limit are cut."""
        self.client.log_batch(run_id, tags=[RunTag(key, value[:4000]) for key, value in tags.items()])

    def tags(self, run_id: str) -> dict[str, str]:
        """A run's tags."""
        return dict(self.client.get_run(run_id).data.tags)

    def artifact(self, run_id: str, path: Path) -> None:
        """Copy a file into the run's artifacts."""
        self.client.log_artifact(run_id, str(path))

    def close(self, run_id: str, status: Status) -> None:
        """End a run."""
        self.client.set_terminated(run_id, status=status)
