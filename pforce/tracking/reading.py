"""Tidy frames read from MLflow: one row per trial, and one row per sweep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from pforce.metrics.names import CostName
from pforce.records.status import UNDER_WAY
from pforce.tracking.checks import transient
from pforce.tracking.page import KEYS_A_CALL
from pforce.tracking.store import Tracker
from pforce.tracking.view import PARENT, USER, Tags

TEXTS = [
    "run_id", "run_name", "status", "sweep", "parent", "fingerprint", "training", "trunk", "reason", "device",
    "computed_in", "torch", "commit", "changes", "attention", "tf32", "user", "start_time", "end_time",
    "last_activity", "origin",
]  # fmt: skip
"""Columns of `runs_frame` that are not converted to numbers."""


def _experiments(tracker: Tracker, condition: str | None = None) -> list[Any]:
    """The experiments of a store that meet a condition (MLflow's filter), or all, read page by page."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = tracker.client.search_experiments(filter_string=condition, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def runs_frame(
    tracker: Tracker, sweep: str | None = None, *, keys: Collection[str] | None = None
) -> pd.DataFrame:  # fmt: skip
    """All trials, one row each: run_id, run_name, status, fingerprint, sweep, seed, device, computed_in, torch, commit,
    parameters, last metrics.

    Times are UTC: start_time, end_time, last_activity (the last metric or the end). images_trained is the images seen
    at the last point of the training curve.

    Parameters keep their dotted paths (`timesteps.m`), metrics their names (`val/loss`); parameters that are numbers
    are numbers. Failed, killed and running trials are included with their status. A resumed run is one row; of a metric
    that it logged twice, the value at the later step counts, or at the same step the later value.

    Args:
        sweep: name (MLflow experiment) of one sweep; None reads all sweeps.
        keys: keys of pages (`pforce.tracking.view.key_of`), of which alone runs are read: a server has those of other
            people, too.
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
        for name, run in runs_of(tracker, sweep, "trial", keys)
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


def sweeps_frame(
    tracker: Tracker, sweep: str | None = None, *, keys: Collection[str] | None = None
) -> pd.DataFrame:  # fmt: skip
    """All sweeps, one row each (a name has several where its axes or seeds were changed): run_id, sweep, status,
    start_time, end_time, user, command, cells (number of distinct planned cells; NaN where unknown), reused
    (fingerprints, or their beginnings, of cells that other sweeps had finished).

    Args:
        sweep: name (MLflow experiment) of one sweep; None reads all sweeps.
        keys: as for `runs_frame`.
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
            for name, run in runs_of(tracker, sweep, "sweep", keys)
        ]
    )


def sweep_names(tracker: Tracker) -> list[str]:
    """Names of all sweeps of the store, sorted: its MLflow experiments except MLflow's default one."""
    return sorted({experiment.name for experiment in _experiments(tracker)} - {"Default"})


def _pages(tracker: Tracker, sweep: str | None, keys: Collection[str] | None) -> list[Any]:
    """Experiments with one of the keys, where keys are given; else those with a sweep's name, else those that had it
    before they were renamed; without a name all. The store chooses them: a server has those of many people.

    Where none has one of the keys, it is one of an earlier version with the sweep's name and no key.
    """
    called = None if sweep is None else tracker.client.get_experiment_by_name(sweep)
    named = [called] if called is not None and called.lifecycle_stage == "active" else []
    if keys is not None:
        few = len(keys) <= KEYS_A_CALL
        conditions = [f"tags.`{Tags.KEY}` = '{key}'" for key in keys] if few else [f"tags.`{Tags.KEY}` LIKE '%'"]
        there = [each for condition in conditions for each in _experiments(tracker, condition)]
        own = [each for each in there if each.tags.get(Tags.KEY) in keys]
        own = [each for each in own if sweep is None or sweep in (each.name, each.tags.get(Tags.NAME))]
        return own or [each for each in named if Tags.KEY not in each.tags]
    if sweep is None:
        return _experiments(tracker)
    if named:
        return named
    return [] if "'" in sweep else _experiments(tracker, f"tags.`{Tags.NAME}` = '{sweep}'")


def runs_of(
    tracker: Tracker, sweep: str | None, kind: str, keys: Collection[str] | None = None
) -> Sequence[tuple[str, Any]]:  # fmt: skip
    """(sweep's name, run) of all runs of a kind, read page by page."""
    # A page may be renamed, and on a server its name says whose it is: the sweep is called by its own name.
    names = {each.experiment_id: each.tags.get(Tags.NAME) or each.name for each in _pages(tracker, sweep, keys)}
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


def cell_of_run(tracker: Tracker, run_id: str) -> str | None:
    """Digest of the cell that a run shows; None where the store has no such run. Raises the error of a store that does
    not answer."""
    try:
        run = tracker.client.get_run(run_id)
    except Exception as error:  # every kind of store raises its own
        if transient(error):
            raise
        return None
    return None if run.info.lifecycle_stage != "active" else run.data.tags.get(Tags.FINGERPRINT)


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
