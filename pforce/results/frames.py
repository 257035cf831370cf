"""Tidy frames of runs and cells, and the names of their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pforce.metrics.distances import metric_name
from pforce.metrics.names import DISTANCES, VALIDATION_LOSS, MetricName, read_names
from pforce.records.status import FINISHED, UNDER_WAY
from pforce.results.stored import storage_frame
from pforce.storage import Storage, StorageError
from pforce.tracking import Tracker, is_server, runs_frame
from pforce.tracking.checks import is_database

LOSS = "train/loss"
CALIBRATION_CURVE = ("calibration/expected", "calibration/observed")


class Row(NamedTuple):
    """A row of a table: its labels and the cells behind it."""

    labels: Mapping[str, str]
    """Axis → value as shown; values with the same distribution share a row, such as sigma "0.5, 0.6"."""
    fingerprints: Sequence[str]
    """Fingerprints of its cells, one per seed."""


def runs(storage_or_tracking_uri: str | Path, sweep: str | None = None) -> pd.DataFrame:
    """One row per cell of a storage's sweeps, from its records, or one row per run of a tracking store.

    Columns: run_name, status, fingerprint, all parameters by dotted path, all metrics. A storage gives finished cells
    and diverged ones. A tracking store gives all runs: failed, stopped and running trials are rows, distinguished by
    `status` and `reason`, and where several sweeps ran the same experiment (same fingerprint), each run is a row.
    `cells` keeps one row per fingerprint.

    Args:
        storage_or_tracking_uri: folder or bucket of a storage, or `sqlite:///…/mlflow.db`, or the address of an MLflow
            server.
        sweep: name of one sweep, such as `ltg_grid`; None reads all.

    Raises:
        StorageError, TrackingError: the store cannot be read.
    """
    text = str(storage_or_tracking_uri)
    if is_server(text) or is_database(text):
        return runs_frame(Tracker(text, artifacts=Path("runs"), make=False), sweep)
    storage = Storage.open(text)
    if not storage.remote and not storage.root.is_dir():
        raise StorageError(f"{text}: there is no such folder (from {Path.cwd()}); give the storage of a sweep")
    return storage_frame(storage, sweep)


def with_states(stored: pd.DataFrame, tracked: pd.DataFrame) -> pd.DataFrame:
    """The finished cells of a storage, together with a tracking store's runs of cells that are not finished (failed,
    stopped or running), for a table to show."""
    if tracked.empty:
        return stored
    done = set(stored["fingerprint"]) if len(stored) else set()
    others = tracked[~tracked["fingerprint"].isin(done) & (tracked["status"] != FINISHED)]
    if others.empty:
        return stored
    return others if stored.empty else pd.concat([stored, others], ignore_index=True)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per fingerprint: its newest finished run; without one, its running run; else its newest run.

    Args:
        frame: frame of `runs`. Runs without a fingerprint are left out.
    """
    if frame.empty:
        return frame
    # Only three of a frame's hundred columns are sorted, because a table calls this for each of its rows.
    few = frame[["fingerprint", "status", "start_time"]].reset_index(drop=True).dropna(subset=["fingerprint"])
    rank = few["status"].map({FINISHED: 2, **dict.fromkeys(UNDER_WAY, 1)}).fillna(0)
    ordered = few.assign(_rank=rank).sort_values(["_rank", "start_time"], kind="stable")
    return frame.iloc[sorted(ordered.drop_duplicates("fingerprint", keep="last").index)]


def finished(frame: pd.DataFrame, rows: Row | Sequence[Row]) -> pd.DataFrame:
    """The finished cells of a row, or of all rows of a table."""
    if frame.empty:
        return frame
    several = [rows] if isinstance(rows, Row) else rows
    wanted = {fingerprint for row in several for fingerprint in row.fingerprints}
    chosen = cells(frame[frame["fingerprint"].isin(wanted)])
    return chosen[chosen["status"] == FINISHED]


def finished_by_row(frame: pd.DataFrame, rows: Sequence[Row]) -> list[pd.DataFrame]:
    """The finished cells of each row, found in one pass: `finished` goes through the whole frame at each call."""
    there = finished(frame, rows)
    if there.empty:
        return [there for _ in rows]
    places = {fingerprint: number for number, fingerprint in enumerate(there["fingerprint"])}
    own = ({places[each] for each in row.fingerprints if each in places} for row in rows)
    return [there.iloc[sorted(numbers)] for numbers in own]


def distance_of(name: str) -> tuple[str, str] | None:
    """Kind and detector of a distance: `fid` → ("fd", "inception"), `kd/openmoji` → ("kd", "openmoji"); None for other
    names."""
    found = read_names([name]).get(name)
    if found is None or found.kind not in DISTANCES or found.detector is None or found.beside is not None:
        return None
    return found.kind, found.detector


def detectors(frame: pd.DataFrame) -> list[str]:
    """Detectors of the distances in the frame: those with the most rows first, then those that experiments name first,
    before their further ones."""
    found: dict[str, int] = {}
    named = set(frame["evaluation.detector"].dropna().astype(str)) if "evaluation.detector" in frame else set()
    first = {name.rsplit(":", 1)[-1] for name in named}
    for text, name in read_names(frame.columns).items():
        if name.detector and name.beside is None and (n := int(frame[text].notna().sum())):
            found[name.detector] = max(n, found.get(name.detector, 0))
    return sorted(found, key=lambda detector: (-found[detector], detector not in first, detector))


def distances_in(frame: pd.DataFrame) -> list[str]:
    """Names of the distances that the frame has values of, by detector and in the order of tables."""
    names = (metric_name(short, detector) for detector in detectors(frame) for short in DISTANCES)
    return [name for name in names if name in frame and frame[name].notna().any()]


def primary_metric(frame: pd.DataFrame, rows: Sequence[Row]) -> str | None:
    """The metric that rows are compared by: the Fréchet distance of their detector, else another distance, else
    `val/loss`.

    None where no row has any of them.
    """
    values = finished(frame, rows)
    named = [*distances_in(values), VALIDATION_LOSS]
    return next((name for name in named if name in values and values[name].notna().any()), None)


def so_far(frame: pd.DataFrame, row: Row) -> tuple[float, float]:
    """Images that the unfinished cells of a row have seen, and the newest loss of the one that has seen most; NaN where
    none has begun or the frame is of records alone."""
    found = cells(frame[frame["fingerprint"].isin(row.fingerprints)]) if len(frame) else frame
    if found.empty or "images_trained" not in found:
        return math.nan, math.nan
    found = found[(found["status"] != FINISHED) & found["images_trained"].gt(0)]
    if found.empty:
        return math.nan, math.nan
    newest = found.sort_values("images_trained").to_dict("records")[-1]
    return float(found["images_trained"].sum()), float(newest.get(LOSS, math.nan))


def by_what_is_known(frame: pd.DataFrame, rows: Sequence[Row]) -> list[Row]:
    """The rows of a sweep that runs: those with a value of the metric that rows are compared by, the best mean first;
    then those that have seen most images, the smallest loss first; then those of which nothing is known."""
    metric = primary_metric(frame, rows)
    sign = 1.0 if metric is None or smaller_is_better(metric) else -1.0

    def place(row: Row) -> list[float]:
        values, (images, loss) = finished(frame, row), so_far(frame, row)
        measured = pd.Series(dtype=float) if metric is None or values.empty else values[metric].astype(float)
        known = (sign * float(measured.mean()), -images, loss)
        return [math.inf if math.isnan(each) else each for each in known]

    return sorted(rows, key=place)


def smaller_is_better(metric: str) -> bool:
    """Whether smaller values are better: true of distances, losses, calibration and costs; false of correlations,
    precision, recall and scores."""
    name = MetricName.parse(metric)
    return name is None or not name.larger_is_better


def row_names(rows: Sequence[Row]) -> list[str]:
    """Names of the rows in sentences, by the axes that differ: `m 0.7, sigma 0.5 or 0.6`."""
    axes = list(rows[0].labels) if rows else []
    differ = [axis for axis in axes if len({row.labels[axis] for row in rows}) > 1] or axes
    return [
        ", ".join(f"{axis} {row.labels[axis].replace(', ', ' or ')}" for axis in differ) or "the only cell"
        for row in rows
    ]


def calibration_curves(frame: pd.DataFrame, rows: Sequence[Row]) -> pd.DataFrame:
    """Calibration by deciles: row (its number), the row's labels, t, decile, expected, observed, and n.

    Means over the finished seeds of each row that have the metrics; rows without any are left out.

    Args:
        frame, rows: as for `cell_table`.
    """
    records = []
    names = [name for name in read_names(frame.columns).values() if name.t is not None and name.decile is not None]
    points = sorted({(name.t, name.decile) for name in names})
    for number, (row, values) in enumerate(zip(rows, finished_by_row(frame, rows) if points else (), strict=False)):
        for t, decile in points:
            both = [str(MetricName(kind, t=t, decile=decile)) for kind in CALIBRATION_CURVE]
            pairs = values[both].astype(float).dropna()
            if len(pairs):
                expected, observed = pairs.mean()
                record = {"t": t, "decile": decile, "expected": expected, "observed": observed, "n": len(pairs)}
                records.append({"row": number, **row.labels, **record})
    return pd.DataFrame(records)
