"""Costs of the runs of a store, as `pforce cost` shows them."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd

from pforce.metrics.names import CostName
from pforce.records.status import FAILED, FINISHED, KILLED, UNDER_WAY

By = Literal["sweep", "user", "device", "day"]
OUTCOMES = ("finished", "failed", "killed", "running")
COLUMNS = ["trials", "device_hours", *(f"{outcome}_hours" for outcome in OUTCOMES), "images", "seconds", "share",
           "unrecorded"]  # fmt: skip


def _column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    if name not in frame:
        return pd.Series(float("nan"), index=frame.index)
    return pd.to_numeric(frame[name], errors="coerce").astype(float)


def run_costs(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run: sweep, user, device, day (in UTC, of its end; of its last report where it has none), days (their
    number from its start to its end), kind, outcome, device_hours, images, seconds, shared_hours (not included in
    device_hours), recorded.

    Trials that share a training (they differ in their evaluation) each report its whole cost, and so does a sweep that
    resumes another sweep's training: the cost of each training counts once, in the run that added it. Where several
    sweeps have runs of the same cell, only the first is a row. Runs that train nothing have only
    `cost/evaluation_seconds` and count as one device. recorded is False for runs without a recorded cost, which ended
    before the first point of their curve or were made by an earlier version.

    Args:
        runs: frame of `pforce.tracking.runs_frame`.
    """
    if runs.empty:
        return pd.DataFrame()
    runs = runs.sort_values(["start_time", "sweep"], kind="stable")
    cell = runs["fingerprint"].where(runs["status"] == FINISHED)
    runs = runs[~(cell.duplicated() & cell.notna())]
    training, evaluation = _column(runs, CostName.TRAINING_SECONDS), _column(runs, CostName.EVALUATION_SECONDS)
    alone = evaluation.where(runs["training"].isna())
    hours = _column(runs, CostName.DEVICE_HOURS).fillna(alone / 3600)
    seconds = _column(runs, CostName.SECONDS).fillna(training).fillna(alone)
    # Running and failed runs have only trained; a part of finished ones is evaluation.
    share = (training / seconds).where(seconds > 0).fillna(1.0).where(runs["training"].notna(), 0.0)
    of_training = pd.DataFrame(
        {"hours": hours * share, "seconds": seconds * share, "images": _column(runs, "images_trained")}
    ).fillna(0.0)
    counted_twice = _counted_twice(runs, of_training)
    end = runs["end_time"].fillna(runs["last_activity"]).fillna(runs["start_time"])
    device = _device(runs)
    return pd.DataFrame(
        {
            "sweep": runs["sweep"],
            "user": runs["user"],
            "device": device,
            "day": end.dt.strftime("%Y-%m-%d"),
            "days": (end.dt.normalize() - runs["start_time"].dt.normalize()).dt.days + 1,
            "kind": device.map(lambda name: name if name in ("cpu", "unknown") else "gpu"),
            "outcome": runs["status"].map({FINISHED: "finished", FAILED: "failed", KILLED: "killed"})
            .mask(runs["status"].isin(UNDER_WAY), "running"),
            "device_hours": hours.fillna(0.0) - counted_twice["hours"],
            "images": of_training["images"] - counted_twice["images"],
            "seconds": seconds.fillna(0.0) - counted_twice["seconds"],
            "shared_hours": counted_twice["hours"],
            "recorded": hours.notna(),
        }
    )  # fmt: skip


def _counted_twice(runs: pd.DataFrame, of_training: pd.DataFrame) -> pd.DataFrame:
    """hours, seconds and images of each run's training that an earlier run has counted. A branch has those of its
    trunk, up to its own start, and its own."""
    no_trunk = pd.Series(None, index=runs.index, dtype=object)
    before = pd.DataFrame(
        {
            "hours": _column(runs, CostName.TRUNK_DEVICE_HOURS), "seconds": _column(runs, CostName.TRUNK_SECONDS),
            "images": _column(runs, CostName.TRUNK_IMAGES),
        }
    ).fillna(0.0)  # fmt: skip
    before = before.clip(upper=of_training)
    pieces = pd.concat([of_training - before, before], keys=["own", "trunk"])
    of = pd.concat([runs["training"], runs.get("trunk", no_trunk)], keys=["own", "trunk"])
    # In the order in which the runs began, for both pieces.
    order = [(piece, run) for run in runs.index for piece in ("own", "trunk")]
    pieces, of = pieces.loc[order], of.loc[order]
    # Total cost of a training after each run: its increase belongs to the run.
    so_far = pieces.groupby(of).cummax()
    earlier = so_far.groupby(of).shift(fill_value=0.0)
    known = pieces.where(of.notna(), 0.0)
    return known.clip(upper=earlier.fillna(0.0)).groupby(level=1).sum().loc[runs.index]


def _device(runs: pd.DataFrame) -> pd.Series[Any]:
    """Device of each run: cpu or a GPU's name. A run that ended before it reported its device gets the most common one
    of its sweep, else unknown."""
    known = runs.loc[runs["device"].notna(), ["sweep", "device"]]
    common = {sweep: part["device"].mode().iloc[0] for sweep, part in known.groupby("sweep")}
    return runs["device"].fillna(runs["sweep"].map(common).astype(object)).fillna("unknown")


def costs(of_runs: pd.DataFrame, by: By) -> pd.DataFrame:
    """One row per group and kind of device, the most expensive first: `by`, kind (gpu, cpu, unknown), COLUMNS.

    Hours of GPUs and of CPU cores are never added up: share is the share of a kind. seconds are summed over trials,
    also over simultaneous ones.

    Args:
        of_runs: frame of `run_costs`.
    """
    if of_runs.empty:
        return pd.DataFrame(columns=[by, "kind", *COLUMNS])
    rows = []
    for (group, kind), part in of_runs.groupby([by, "kind"]):
        hours = part.groupby("outcome")["device_hours"].sum()
        rows.append(
            {
                by: group,
                "kind": kind,
                "trials": len(part),
                "device_hours": part["device_hours"].sum(),
                **{f"{outcome}_hours": float(hours.get(outcome, 0.0)) for outcome in OUTCOMES},
                "images": part["images"].sum(),
                "seconds": part["seconds"].sum(),
                "unrecorded": int((~part["recorded"]).sum()),
            }
        )
    frame = pd.DataFrame(rows)
    frame["share"] = frame["device_hours"] / frame.groupby("kind")["device_hours"].transform("sum")
    order = {"gpu": 0, "cpu": 1, "unknown": 2}
    keys = ["kind", "device_hours"] if by != "day" else ["kind", by]
    frame = frame.sort_values(
        keys,
        ascending=[True, by == "day"],
        key=lambda column: column.map(order) if column.name == "kind" else column,
        ignore_index=True,
    )
    return frame[[by, "kind", *COLUMNS]]
