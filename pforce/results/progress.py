"""Progress of sweeps and their trials, as `pforce runs` shows it, from one reading of the store."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import pandas as pd

from pforce.config import Experiment
from pforce.metrics.names import THROUGHPUT, CostName
from pforce.records.status import FAILED, FINISHED, KILLED, UNDER_WAY
from pforce.results.frames import LOSS, Row, cells, primary_metric, smaller_is_better
from pforce.tracking import Tracker, runs_frame, sweeps_frame

SILENT_SECONDS = 600.0
"""Seconds without a report after which a running trial may have lost its driver."""
STATES = {FINISHED: "done", FAILED: "failed", KILLED: "stopped"}
BUDGET, RATE, COST = "training.images", THROUGHPUT, CostName.DEVICE_HOURS
TRIAL_COLUMNS = [
    "sweep", "label", "state", "reason", "progress", "images_seen", "images", "images_per_second", "device_hours",
    "seconds_left", "attempts", "started", "last_activity", "parent", "fingerprint", "run_id", "loss",
]  # fmt: skip
SWEEP_COLUMNS = [
    "sweep", "state", "planned", "done", "running", "failed", "stopped", "progress", "device_hours", "started",
    "last_activity", "seconds_left", "metric", "best", "differs", "run_id",
]  # fmt: skip
GROUPS = tuple(f"{each.name}." for each in dataclasses.fields(Experiment))
TOLD_FIRST = ("name", "training.images", "seed", "timesteps", "sampler.name")
"""Fields of an experiment that distinguish sweeps best, in this order."""
MOST_TOLD = 3


class Read(NamedTuple):
    """Runs and sweeps of a store."""

    runs: pd.DataFrame
    """Frame of `pforce.tracking.runs_frame`."""
    sweeps: pd.DataFrame
    """Frame of `pforce.tracking.sweeps_frame`."""


def read(tracker: Tracker, sweep: str | None = None, *, keys: Collection[str] | None = None) -> Read:
    """Read runs and sweeps of a store with a few calls, whatever their number.

    Args:
        sweep: name of the sweeps to read; None reads all. Runs are always all read, because another sweep may have
            finished a cell.
        keys: keys of the pages that are read, as for `pforce.tracking.runs_frame`; None reads all.
    """
    return Read(runs_frame(tracker, keys=keys), sweeps_frame(tracker, sweep, keys=keys))


def now_utc() -> pd.Timestamp:
    """The present time as in a store's frames: UTC, without a zone."""
    return pd.Timestamp.now("UTC").tz_localize(None)


def _column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    if name not in frame:
        return pd.Series(math.nan, index=frame.index, dtype=float)
    return pd.to_numeric(frame[name], errors="coerce").astype(float)


def trials(runs: pd.DataFrame, now: pd.Timestamp) -> pd.DataFrame:
    """One row per trial: TRIAL_COLUMNS. NaN stands for unknown values.

    state is done, failed, stopped, running, or silent (running, but without a report for SILENT_SECONDS). progress is
    the share of the images that the training has seen, 0 to 1; 1 where it is done. seconds_left is for the training at
    its last speed; silent trials have none.

    Args:
        runs: frame of `pforce.tracking.runs_frame`.
        now: present time in UTC, from `now_utc`.
    """
    if runs.empty:
        return pd.DataFrame(columns=TRIAL_COLUMNS)
    under_way = runs["status"].isin(UNDER_WAY)
    silent = under_way & ((now - runs["last_activity"]).dt.total_seconds() > SILENT_SECONDS)
    state = runs["status"].map(STATES).fillna("running").mask(silent, "silent")
    images, seen, rate = _column(runs, BUDGET), _column(runs, "images_trained"), _column(runs, RATE)
    # A sampler's measurement and an evaluation train nothing: they are done or not.
    trained = images.notna()
    progress = (seen.where(trained).fillna(0.0).where(trained) / images).clip(upper=1.0).mask(state == "done", 1.0)
    left = ((images - seen).clip(lower=0) / rate.where(rate > 0)).where(state == "running")
    return pd.DataFrame(
        {
            "sweep": runs["sweep"],
            "label": runs["run_name"],
            "state": state,
            "reason": runs["reason"],
            "progress": progress,
            "images_seen": seen,
            "images": images,
            "images_per_second": rate,
            "device_hours": _column(runs, COST),
            "seconds_left": left,
            "attempts": runs["attempts"],
            "started": runs["start_time"],
            "last_activity": runs["last_activity"],
            "parent": runs["parent"],
            "fingerprint": runs["fingerprint"],
            "run_id": runs["run_id"],
            "loss": _column(runs, LOSS),
        }
    )


def by_what_is_known(of_trials: pd.DataFrame, runs: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """Trials with a column `value`: those that have one first, the best first, then those that have seen most images,
    the smallest loss first.

    Args:
        of_trials: rows of `trials`, with its index.
        runs: frame that those were made from.
        metric: metric of `value`; None where no trial has any.
    """
    value = _column(runs.loc[of_trials.index], metric or "").where(of_trials["state"] == "done")
    best_first = value if metric is None or smaller_is_better(metric) else -value
    known = of_trials.assign(value=value, _place=best_first, _seen=-of_trials["images_seen"])
    return known.sort_values(["_place", "_seen", "loss"], kind="stable").drop(columns=["_place", "_seen"])


def sweeps(found: Read, now: pd.Timestamp) -> pd.DataFrame:
    """One row per sweep, the newest first: SWEEP_COLUMNS. A name has several where its axes or seeds were changed.

    Cells that another sweep has finished count as done. progress is the share of the planned images; device_hours sums
    all trials, including failed and stopped ones; seconds_left is NaN where nothing runs. best is the best value of
    metric (see `primary_metric`) among the finished trials. differs is what tells sweeps of one name apart.

    Args:
        found: result of `read`.
        now: present time in UTC, from `now_utc`.
    """
    of_trials = trials(found.runs, now)
    told = _differences(found, of_trials)
    rows = [
        {**_sweep(parent, found.runs, of_trials, now), "differs": told.get(parent["run_id"], "")}
        for _, parent in found.sweeps.iterrows()
    ]
    frame = pd.DataFrame(rows, columns=SWEEP_COLUMNS)
    return frame.sort_values("started", ascending=False, ignore_index=True, kind="stable")


def members(parent: pd.Series[Any], of_trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of a sweep: its own, one per cell, and those of its cells that another sweep has finished."""
    if of_trials.empty:
        return of_trials
    own = of_trials["parent"] == parent["run_id"]
    reused: Sequence[str] = parent["reused"]
    elsewhere = (of_trials["state"] == "done") & of_trials["fingerprint"].str.startswith(tuple(reused), na=False)
    chosen = of_trials[own | (elsewhere if reused else False)]
    # Its own run of a cell hides another sweep's; the order is the store's.
    status = chosen["state"].map({"done": 2, "running": 1, "silent": 1}).fillna(0)
    ranked = chosen.assign(_own=own[chosen.index], _rank=status).sort_values(["_rank", "_own"], kind="stable")
    kept = ranked.drop_duplicates("fingerprint", keep="last").index
    return chosen.loc[chosen.index.isin(kept)]


def _sweep(parent: pd.Series[Any], runs: pd.DataFrame, of_trials: pd.DataFrame, now: pd.Timestamp) -> dict[str, Any]:
    own = members(parent, of_trials)
    counts = {state: int((own["state"] == state).sum()) for state in ("done", "running", "silent", "failed", "stopped")}
    planned = max(int(parent["cells"]) if not math.isnan(parent["cells"]) else 0, len(own))
    last = max([parent["start_time"], *own["last_activity"], *([parent["end_time"]] if _ended(parent) else [])])
    running = parent["status"] in UNDER_WAY
    silent = running and (now - last).total_seconds() > SILENT_SECONDS
    done = STATES.get(parent["status"]) == "done"
    progress = 1.0 if done else (own["progress"].fillna(0.0).sum() / planned if planned else 0.0)
    metric, best = _best(runs.loc[own.index]) if len(own) else (None, math.nan)
    return {
        "sweep": parent["sweep"],
        "state": "silent" if silent else STATES.get(parent["status"], "running"),
        "planned": planned,
        "done": counts["done"],
        "running": counts["running"] + counts["silent"],
        "failed": counts["failed"],
        "stopped": counts["stopped"],
        "progress": progress,
        "device_hours": own.loc[own["parent"] == parent["run_id"], "device_hours"].sum(),
        "started": parent["start_time"],
        "last_activity": last,
        "seconds_left": _seconds_left(own, planned, runs) if running and not silent else math.nan,
        "metric": metric,
        "best": best,
        "run_id": parent["run_id"],
    }


def _differences(found: Read, of_trials: pd.DataFrame) -> dict[str, str]:
    """Run id of a sweep → the fields that all its trials have in common and in which other sweeps of its name differ,
    such as `images=6,400, seed=1`; nothing for a name that one sweep has."""
    told: dict[str, str] = {}
    if found.sweeps.empty:
        return told
    known = [str(name) for name in found.runs]
    columns = [name for name in TOLD_FIRST if name in known]
    columns += [name for name in known if name.startswith(GROUPS) and name not in TOLD_FIRST]
    for _, same in found.sweeps.groupby("sweep"):
        if len(same) < 2 or not columns:
            continue
        common: dict[str, pd.Series[Any]] = {}
        for _, parent in same.iterrows():
            own = found.runs.loc[members(parent, of_trials).index, columns].astype(str)
            if len(own):
                common[parent["run_id"]] = own.iloc[0].where(own.nunique() == 1)
        values = pd.DataFrame(common).T
        differing = [name for name in values if values[name].notna().all() and values[name].nunique() > 1]
        for run_id, row in values[differing[:MOST_TOLD]].iterrows():
            told[str(run_id)] = ", ".join(_assignment(str(name), str(value)) for name, value in row.items())
    return told


def _assignment(name: str, value: str) -> str:
    """A field and its value as text: `images=6,400`; an experiment's name alone."""
    shown = f"{float(value):,g}" if value.replace(".", "", 1).isdecimal() and float(value) < 1e6 else value
    return shown if name == "name" else f"{name.rsplit('.', 1)[-1]}={shown}"


def _ended(parent: pd.Series[Any]) -> bool:
    return parent["status"] not in UNDER_WAY and not pd.isna(parent["end_time"])


def _seconds_left(own: pd.DataFrame, planned: int, runs: pd.DataFrame) -> float:
    """Seconds until all cells are done, at the speed of the trials that run now; NaN where none runs."""
    running = own[(own["state"] == "running") & own["images_per_second"].gt(0)]
    if running.empty:
        return math.nan
    open_images = own.loc[own["state"] != "done", ["images", "images_seen"]]
    to_see = (open_images["images"] - open_images["images_seen"].fillna(0.0)).clip(lower=0).sum()
    to_see += (planned - len(own)) * own["images"].mean()  # cells that have not started yet
    at_once = float(to_see / running["images_per_second"].sum())
    # Finished trials show how much their evaluation adds to their training.
    mine = runs.loc[own.index]
    ratio = (_column(mine, CostName.SECONDS) / _column(mine, CostName.TRAINING_SECONDS)).median()
    return max(at_once, float(running["seconds_left"].max())) * (1.0 if math.isnan(ratio) else max(1.0, ratio))


def _best(own: pd.DataFrame) -> tuple[str | None, float]:
    """The metric that trials are compared by, and its best value."""
    done = cells(own)
    done = done[done["status"] == FINISHED]
    metric = primary_metric(done, [Row({}, list(done["fingerprint"]))]) if len(done) else None
    if metric is None:
        return None, math.nan
    return metric, float(done[metric].min() if smaller_is_better(metric) else done[metric].max())
