"""Runs as any program may leave them in a store, for tests of what reads them: MLflow's own client, one call each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Metric, Param

from pforce.tracking import PARENT, Tags, Tracker

METRICS_A_CALL, PARAMS_A_CALL = 1000, 100


class RunSpec(NamedTuple):
    """What a child run is made from."""

    name: str
    fingerprint: str
    params: Mapping[str, object]
    tags: Mapping[str, str]


class SweepRun(NamedTuple):
    """The parent run of a sweep."""

    experiment_id: str
    run_id: str


class Writer(Tracker):
    """A connection that also writes."""

    def __init__(self, uri: str, *, artifacts: Path = Path("runs")) -> None:
        super().__init__(uri, artifacts=artifacts)

    def open_sweep(self, name: str, identity: str, tags: Mapping[str, str]) -> SweepRun:
        there = self.client.get_experiment_by_name(name)
        experiment_id = there.experiment_id if there else self.client.create_experiment(name)
        all_tags = {**tags, Tags.SWEEP: identity, Tags.KIND: "sweep"}
        return SweepRun(experiment_id, self.client.create_run(experiment_id, run_name=name, tags=all_tags).info.run_id)

    def open_trial(self, sweep: SweepRun, spec: RunSpec) -> str:
        tags = {**spec.tags, PARENT: sweep.run_id, Tags.FINGERPRINT: spec.fingerprint, Tags.KIND: "trial"}
        run_id: str = self.client.create_run(sweep.experiment_id, run_name=spec.name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in spec.params.items()]
        for first in range(0, len(params), PARAMS_A_CALL):
            self.client.log_batch(run_id, params=params[first : first + PARAMS_A_CALL])
        return run_id

    def log(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        now = int(time.time() * 1000)
        rows = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        for first in range(0, len(rows), METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=rows[first : first + METRICS_A_CALL])

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_tag(run_id, key, value)

    def close(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status=status)
