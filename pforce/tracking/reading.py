"""Tidy frames read from MLflow: one row per trial, and one row per sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pforce.metrics.names import CostName
from pforce.records.status import UNDER_WAY
from pforce.tracking.store import Tracker
from pforce.tracking.view import PARENT, USER, Tags

TEXTS = [
    "run_id", "run_name", "status", "sweep", "parent", "fingerprint", "training", "trunk", "reason", "device",
    "computed_in", "torch", "commit", "changes", "attention", "tf32", "user", "start_time", "end_time",
    "last_activity", "origin",
]  # fmt: skip
"""Columns of `runs_frame` that are not converted to numbers."""


def _experiments(tracker: Tracker) -> list[Any]:
    """All experiments of a store, read page by page."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = tracker.client.search_experiments(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def runs_frame(tracker: Tracker, sweep: str | None = None, *, key: str | None = None) -> pd.DataFrame:
    """All trials, one row each: run_id, run_name, status, fingerprint, sweep, seed, device, computed_in, torch, commit,
    parameters, last metrics.

    Times are UTC: start_time, end_time, last_activity (the last metric or the end). images_trained is the images seen
    at the last point of the training curve.

    Parameters keep their dotted paths (`timesteps.m`), metrics their names (`val/loss`); parameters that are numbers
    are numbers. Failed, killed and running trials are included with their status. A resumed run is one row; of a metric
    that it logged twice, the value at the later step counts, or at the same step the later value.

    Args:
        sweep: name (MLflow experiment) of one sweep; None reads all sweeps.
        key: key of the sweep's page in one storage (`pforce.tracking.view.key_of`), where several storages may use its
            name.
    """
    rows = [
        {
            "run_id": run.info.run_id,
            "run_name": run.info.run_name,
            "status": run.info.status,
            "start_time": _time(run.info.start_time),
            "end_time": _time(run.info.end_time),
            "last_activity": _last_activity(run),
            "sweep": name,
            "parent": run.data.tags.get(PARENT),
            "fingerprint": run.data.tags.get(Tags.FINGERPRINT),
            "training": run.data.tags.get(Tags.TRAINING),
            "trunk": run.data.tags.get(Tags.TRUNK),
            "reason": run.data.tags.get(Tags.REASON),
            "device": run.data.tags.get("device"),
            "computed_in": run.data.tags.get("precision"),
            "torch": run.data.tags.get("version.torch"),
            "commit": run.data.tags.get("mlflow.source.git.commit"),
            "user": _user(run),
            "origin": run.data.tags.get(Tags.ORIGIN),
            "attempts": int(run.data.tags.get(Tags.ATTEMPTS, 1)),
            "images_trained": _images_trained(run),
            **run.data.params,
            **run.data.metrics,
        }
        for name, run in runs_of(tracker, sweep, "trial", key)
    ]
    return numbers_where_all_are(pd.DataFrame(rows))


def _whole_numbers(texts: pd.Series) -> pd.Series:
    """Seeds as whole numbers, also where rows have none: as floats, those above 2^53 would melt together."""
    numbers = [pd.NA if pd.isna(text) else int(text) for text in texts]
    return pd.Series(pd.array(numbers, dtype="Int64" if texts.isna().any() else "int64"), index=texts.index)


def numbers_where_all_are(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns of texts converted to numbers where all their values are numbers, except columns in
    TEXTS."""
    found = {name: frame[name] for name in frame.columns}
    for column in frame.columns.difference(TEXTS):
        if frame[column].dtype == object or str(frame[column].dtype) in ("str", "string"):
            numbers = pd.to_numeric(frame[column], errors="coerce")
            if numbers.notna().sum() == frame[column].notna().sum():
                whole = column == "seed" and frame[column].dropna().map(str).str.isdecimal().all()
                found[column] = _whole_numbers(frame[column]) if whole else numbers
    return pd.DataFrame(found, index=frame.index)  # at once: hundreds of columns one by one are slow to read


def sweeps_frame(tracker: Tracker, sweep: str | None = None) -> pd.DataFrame:
    """All sweeps, one row each (a name has several where its axes or seeds were changed): run_id, sweep, status,
    start_time, end_time, user, command, cells (number of distinct planned cells; NaN where unknown), reused
    (fingerprints, or their beginnings, of cells that other sweeps had finished).

    Args:
        sweep: name (MLflow experiment) of one sweep; None reads all sweeps.
    """
    return pd.DataFrame(
        [
            {
                "run_id": run.info.run_id,
                "sweep": name,
                "status": run.info.status,
                "start_time": _time(run.info.start_time),
                "end_time": _time(run.info.end_time),
                "user": _user(run),
                "command": run.data.tags.get(Tags.COMMAND),
                "cells": float(run.data.tags.get(Tags.CELLS, "nan")),
                "reused": tuple(run.data.tags.get(Tags.REUSED, "").split()),
            }
            for name, run in runs_of(tracker, sweep, "sweep")
        ]
    )


def sweep_names(tracker: Tracker) -> list[str]:
    """Names of all sweeps of the store, sorted: its MLflow experiments except MLflow's default one."""
    return sorted({experiment.name for experiment in _experiments(tracker)} - {"Default"})


def _pages(tracker: Tracker, sweep: str | None, key: str | None = None) -> list[Any]:
    """Experiments of a sweep's name: the one with the key, else those with that name, else those that had it before
    they were renamed."""
    found = _experiments(tracker)
    if sweep is None:
        return found
    own = [e for e in found if key is not None and e.tags.get(Tags.KEY) == key]
    if own:
        return own
    called = [e for e in found if e.name == sweep]
    return called or [e for e in found if e.tags.get(Tags.NAME) == sweep]


def runs_of(tracker: Tracker, sweep: str | None, kind: str, key: str | None = None) -> Sequence[tuple[str, Any]]:
    """(sweep's name, run) of all runs of a kind, read page by page."""
    # A page may be renamed, and on a server its name says whose it is: the sweep is called by its own name.
    names = {e.experiment_id: e.tags.get(Tags.NAME) or e.name for e in _pages(tracker, sweep, key)}
    found: list[tuple[str, Any]] = []
    token: str | None = None
    while names:
        page = tracker.client.search_runs(
            list(names), filter_string=f"tags.`{Tags.KIND}` = '{kind}'", max_results=1000, page_token=token
        )
        found += [(names[run.info.experiment_id], run) for run in page]
        token = page.token
        if not token:
            break
    return found


def _time(milliseconds: int | None) -> Any:
    """A time as a UTC timestamp; NaT where there is none."""
    return pd.NaT if milliseconds is None else pd.Timestamp(milliseconds, unit="ms")


def _user(run: Any) -> str:
    return str(run.data.tags.get(USER) or run.info.user_id or "unknown")


def _last_activity(run: Any) -> Any:
    """Time of a run's last sign of life: its end, or while it runs, its last metric."""
    if run.info.status not in UNDER_WAY and run.info.end_time:
        return _time(run.info.end_time)
    # The only place where MLflow gives times of metrics without one call per run.
    times = [metric.timestamp for metric in run.data._metric_objs]
    return _time(max([run.info.start_time, run.info.end_time or 0, *times]))


def _images_trained(run: Any) -> float:
    """Images seen at the last point of the training curve; NaN where nothing has been trained yet."""
    seen = run.data.metrics.get("train/images_seen")
    steps = [metric.step for metric in run.data._metric_objs if metric.key == "train/loss"]
    if seen is None and not steps and CostName.TRAINING_SECONDS in run.data.metrics:
        seen = run.data.metrics.get(CostName.IMAGES_SEEN)  # an imported record has no curve
    return float(seen if seen is not None else max(steps, default=float("nan")))
