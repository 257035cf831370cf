"""Direct writes of many runs at once into MLflow's tables, because its interface takes 40 ms per run.

The tables are those of the installed MLflow, which made the database (see `pforce.tracking.checks`). The rows are those
that its interface would write; a test compares the two.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pforce.tracking.checks import LOCK_SECONDS, sqlite_path
from pforce.tracking.view import USER, View

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from sqlalchemy import Connection

RUN_NAME = "mlflow.runName"
CONTEXT = "mlflow.data.context"
KEYS_AT_ONCE = 400
TAG_ATTEMPTS = 5


class Found(NamedTuple):
    """A run found in the store."""

    run_id: str
    deleted: bool
    status: str
    started: int
    tags: Mapping[str, str]
    """The requested tags."""


class Database:
    """MLflow's tables in a database that MLflow opens itself."""

    def __init__(self, uri: str) -> None:
        import sqlalchemy
        from mlflow.store.tracking.dbmodels import models

        limit = {"timeout": LOCK_SECONDS} if sqlite_path(uri) is not None else {}
        self.engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=limit)
        # Tables, not the classes of MLflow's sessions: rows are dictionaries, written thousands per call.
        (self.runs, self.tags, self.params, self.metrics, self.latest, self.experiments, self.datasets, self.inputs,
         self.input_tags) = (
            sqlalchemy.inspect(each).local_table
            for each in (
                models.SqlRun, models.SqlTag, models.SqlParam, models.SqlMetric, models.SqlLatestMetric,
                models.SqlExperiment, models.SqlDataset, models.SqlInput, models.SqlInputTag,
            )
        )  # fmt: skip

    def tagged(self, experiment_id: str, name: str, values: Sequence[str] | None, also: Iterable[str]) -> list[Found]:
        """Runs of an experiment, including deleted ones, with a tag that has one of the given values, or any value
        where none are given; the earliest start first.

        Args:
            also: names of further tags to return.
        """
        import sqlalchemy  # comes with MLflow

        runs, tags = self.runs, self.tags
        query = (
            sqlalchemy.select(runs.c.run_uuid, runs.c.lifecycle_stage, runs.c.status, runs.c.start_time)
            .join(tags, tags.c.run_uuid == runs.c.run_uuid)
            .where(tags.c.key == name, runs.c.experiment_id == int(experiment_id))
            .order_by(runs.c.start_time, runs.c.run_uuid)
        )
        chunks = [None] if values is None else [
            values[first : first + KEYS_AT_ONCE] for first in range(0, len(values), KEYS_AT_ONCE)
        ]  # fmt: skip
        with self.engine.connect() as connection:
            rows = [
                row
                for chunk in chunks
                for row in connection.execute(query if chunk is None else query.where(tags.c.value.in_(chunk)))
            ]
            of_runs: dict[str, dict[str, str]] = {row.run_uuid: {} for row in rows}
            wanted = sqlalchemy.select(tags).where(tags.c.key.in_([name, *also]))
            names = list(of_runs)
            for first in range(0, len(names), KEYS_AT_ONCE):
                some = names[first : first + KEYS_AT_ONCE]
                for tag in connection.execute(wanted.where(tags.c.run_uuid.in_(some))):
                    of_runs[tag.run_uuid][tag.key] = tag.value
        return [
            Found(row.run_uuid, row.lifecycle_stage != "active", row.status, row.start_time, of_runs[row.run_uuid])
            for row in rows
        ]

    def insert(
        self, experiment_id: str, artifacts: str, views: Sequence[View], metrics: Sequence[Sequence[Metric]]
    ) -> list[str]:
        """Insert whole runs in one transaction and return their ids.

        Args:
            artifacts: URI of the experiment's artifacts.
            metrics: metrics of each view: curve and numbers.
        """
        from mlflow.utils.uri import append_to_uri_path

        ids = [uuid.uuid4().hex for _ in views]
        rows: dict[Any, list[dict[str, Any]]] = {
            each: [] for each in (self.runs, self.tags, self.params, self.metrics, self.latest)
        }
        for run_id, view, values in zip(ids, views, metrics, strict=True):
            rows[self.runs].append({
                "run_uuid": run_id, "name": view.name, "experiment_id": int(experiment_id), "status": view.status,
                "start_time": view.started, "end_time": view.ended, "lifecycle_stage": "active", "deleted_time": None,
                "artifact_uri": append_to_uri_path(artifacts, run_id, "artifacts"), "source_type": "UNKNOWN",
                "source_name": "", "entry_point_name": "", "source_version": "",
                "user_id": view.tags.get(USER, "unknown"),
            })  # fmt: skip
            tags = {RUN_NAME: view.name, **view.tags}
            rows[self.tags] += [{"key": key, "value": value, "run_uuid": run_id} for key, value in tags.items()]
            rows[self.params] += [
                {"key": key, "value": value, "run_uuid": run_id} for key, value in view.params.items()
            ]
            several = {_identity(metric): _row(metric, run_id) for metric in values}
            rows[self.metrics] += several.values()
            newest: dict[str, dict[str, Any]] = {}
            for row in several.values():
                before = newest.get(row["key"])
                if before is None or _order(row) > _order(before):
                    newest[row["key"]] = row
            rows[self.latest] += newest.values()
        with self.engine.begin() as connection:
            self._link(connection, experiment_id, ids, views, rows)
            for table, several_rows in rows.items():
                if several_rows:
                    connection.execute(table.insert(), several_rows)
        return ids

    def _link(
        self, connection: Connection, experiment_id: str, ids: Sequence[str], views: Sequence[View],
        rows: dict[Any, list[dict[str, Any]]],
    ) -> None:  # fmt: skip
        """Add rows that link runs with their data sets, which the experiment has once each."""
        import sqlalchemy

        sets, page = self.datasets, int(experiment_id)
        wanted = {view.data for view in views if view.data is not None}
        if not wanted:
            return
        there = connection.execute(sqlalchemy.select(sets).where(sets.c.experiment_id == page))
        known = {(row.name, row.digest): row.dataset_uuid for row in there}
        rows |= {self.datasets: [], self.inputs: [], self.input_tags: []}
        for each in wanted:
            if (each.name, each.digest) not in known:
                known[each.name, each.digest] = uuid.uuid4().hex
                rows[sets].append({
                    "dataset_uuid": known[each.name, each.digest], "experiment_id": page, "name": each.name,
                    "digest": each.digest, "dataset_source_type": each.source_type, "dataset_source": each.source,
                    "dataset_schema": None, "dataset_profile": None,
                })  # fmt: skip
        for run_id, data in ((run_id, view.data) for run_id, view in zip(ids, views, strict=True)):
            if data is not None:
                link = uuid.uuid4().hex
                rows[self.inputs].append({
                    "input_uuid": link, "source_type": "DATASET", "source_id": known[data.name, data.digest],
                    "destination_type": "RUN", "destination_id": run_id,
                })  # fmt: skip
                rows[self.input_tags].append({"input_uuid": link, "name": CONTEXT, "value": data.context})

    def move_artifacts(self, experiment_id: str, before: str, now: str) -> None:
        """Let an experiment and its runs have their artifacts below another URI, where the files already lie."""
        import sqlalchemy

        runs, pages = self.runs, self.experiments
        own = runs.c.artifact_uri.startswith(f"{before}/", autoescape=True) & (
            runs.c.experiment_id == int(experiment_id)
        )
        with self.engine.begin() as connection:
            connection.execute(
                pages.update().where(pages.c.experiment_id == int(experiment_id)).values(artifact_location=now)
            )
            rest = sqlalchemy.func.substr(runs.c.artifact_uri, len(before) + 1)
            connection.execute(runs.update().where(own).values(artifact_uri=sqlalchemy.literal(now) + rest))

    def tag(self, name: str, values: Mapping[str, str]) -> None:
        """Set a tag of several runs: run id → value. Another process may set it at the same time."""
        import sqlalchemy

        rows = [{"key": name, "value": value, "run_uuid": run_id} for run_id, value in values.items()]
        tags = self.tags
        old = tags.delete().where(tags.c.key == name, tags.c.run_uuid == sqlalchemy.bindparam("of_run"))
        for attempt in range(TAG_ATTEMPTS):
            try:
                with self.engine.begin() as connection:
                    if rows:
                        connection.execute(old, [{"of_run": row["run_uuid"]} for row in rows])
                        connection.execute(tags.insert(), rows)
                return
            except sqlalchemy.exc.IntegrityError:  # the other one was between the two
                if attempt == TAG_ATTEMPTS - 1:
                    raise


def _identity(metric: Metric) -> tuple[str, int, int, float]:
    return metric.key, metric.timestamp, metric.step, metric.value


def _row(metric: Metric, run_id: str) -> dict[str, Any]:
    return {"key": metric.key, "value": metric.value, "timestamp": metric.timestamp, "step": metric.step,
            "is_nan": False, "run_uuid": run_id}  # fmt: skip


def _order(row: Mapping[str, Any]) -> tuple[int, int, float]:
    """Sort key for the last of a metric's values, as MLflow orders them."""
    return row["step"], row["timestamp"], row["value"]
