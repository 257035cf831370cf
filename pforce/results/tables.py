"""The table of a sweep: one row per setting, with means and spread over seeds, never the best seed.

A distance has two error bars. The one over seeds, the spread in the table, covers other trainings. The one over images
covers other images of the same model and is shown where a single seed has no spread. The CSV has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pforce.metrics.distances import metric_name
from pforce.metrics.names import (
    DISTANCES,
    MEMORISATION,
    PIXEL_MEMORISATION,
    VALIDATION_LOSS,
    CostName,
    MetricName,
    interval_names,
)
from pforce.records.status import UNDER_WAY
from pforce.results.frames import (
    LOSS,
    Row,
    cells,
    detectors,
    distances_in,
    finished,
    finished_by_row,
    so_far,
)
from pforce.results.statistics import mean_interval

SPREAD = " sd"
"""Suffix of the columns that hold a standard deviation over seeds (n − 1)."""
OVER_SEEDS = (" seeds low", " seeds high")
"""Suffixes of the bounds of the mean's 95 % interval over seeds."""
OVER_IMAGES = (" images low", " images high")
"""Suffixes of the bounds of 95 % intervals over images, averaged over seeds."""
PLANNED = " planned"
"""Suffix of the planned number of seeds."""
HIDDEN = (SPREAD, *OVER_SEEDS, *OVER_IMAGES, PLANNED)
"""Suffixes of columns that texts show together with another column, or not at all."""


class Column(NamedTuple):
    """A column of a table, which shows a metric."""

    metric: str
    header: str
    decimals: int
    with_spread: bool
    unit: float = 1.0
    """Unit by which values are divided."""
    of_detector: bool = False
    """Whether there is one such column per detector of the runs; `metric` is then a short name such as `fd`, or
    `images` for the number of images."""


DISTANCE_DECIMALS = {
    "kd": 4, "precision": 3, "recall": 3, "precision_adm": 3, "recall_adm": 3, "density": 3, "coverage": 3, "swd": 4,
    "class_accuracy": 3, "class_kd": 4,
}  # fmt: skip
"""Kind of distance → decimals; all others have two."""
DISTANCE_COLUMNS = tuple(
    Column(short, short, DISTANCE_DECIMALS.get(short, 2), True, of_detector=True) for short in DISTANCES
)
MEMORISATION_COLUMNS = (
    *(Column(short, short, 3, True, of_detector=True) for short in MEMORISATION),
    *(Column(name, name, 3, True) for name in PIXEL_MEMORISATION),
)
QUALITY_COLUMNS = (
    Column(VALIDATION_LOSS, "val loss", 4, True),
    *DISTANCE_COLUMNS,
    *MEMORISATION_COLUMNS,
    Column("difficulty/pearson_t0.20", "R(0.2)", 3, True),
    Column("difficulty/pearson_t0.60", "R(0.6)", 3, True),
)
CALIBRATION_COLUMNS = (
    Column("calibration/error_t0.20", "calib(0.2)", 3, True),
    Column("calibration/error_t0.60", "calib(0.6)", 3, True),
)
"""Columns for sweeps that ask for them: root mean square log ratio of observed to expected squared error; 0 is
perfect."""
COST_COLUMNS = (
    Column(CostName.IMAGES_SEEN, "images seen", 0, False),
    Column("images", "images", 0, False, of_detector=True),
    Column(CostName.NFE, "NFE", 0, False),
    Column(CostName.FORWARD_PASSES, "passes", 0, False),
    Column(CostName.FLOPS, "GFLOPs/image", 2, False, 1e9),
    Column(CostName.SAMPLING_SECONDS, "s/image", 4, False),
    Column(CostName.SECONDS, "seconds", 0, False),
    Column(CostName.DEVICE_HOURS, "device-hours", 4, False),
)
SO_FAR_COLUMNS = (
    Column("images_trained", "images so far", 0, False),
    Column(LOSS, "last loss", 4, False),
)
"""Columns of a table that is shown while its sweep runs: what is known of unfinished cells."""
COLUMNS = (*QUALITY_COLUMNS, *COST_COLUMNS)
"""Columns of every sweep's table."""


def _named(column: Column, values: pd.DataFrame) -> list[Column]:
    """A column under the names that a table's runs use for it."""
    if not column.of_detector:
        return [column]
    found, several = distances_in(values), len(detectors(values)) > 1
    if column.metric in (*DISTANCES, *MEMORISATION):
        names = (metric_name(column.metric, detector) for detector in detectors(values))
        there = found if column.metric in DISTANCES else [name for name in values if values[name].notna().any()]
        return [column._replace(metric=name, header=name, of_detector=False) for name in names if name in there]
    named = []
    for detector in detectors(values):
        of_it = (MetricName(kind, detector, beside="images") for kind in DISTANCES)
        count = next((name for name in of_it if str(name.value) in found and str(name) in values), None)
        if count:  # one evaluation measures all of its distances on the same images
            header = f"{count.value if several else count.short} images"
            named.append(column._replace(metric=str(count), header=header, of_detector=False))
    return named


def cell_table(
    frame: pd.DataFrame, rows: Sequence[Row], columns: Sequence[Column] = COLUMNS, *, under_way: bool = False
) -> pd.DataFrame:
    """Means over the finished seeds of each row, their error bars, and the number of seeds n.

    Beside a mean: ` sd`, ` seeds low` and ` seeds high` (95 %), and for distances ` images low` and ` images high`.
    Beside n: `n planned`, and where any row has such cells, `failed` (including stopped ones) and `running`.

    Args:
        frame: frame of `pforce.results.runs`. Runs with the same fingerprint are one result: see
            `pforce.results.cells`.
        columns: columns in order; a metric that no run has is left out.
        under_way: whether the sweep runs: SO_FAR_COLUMNS are added where any cell is unfinished.
    """
    there = finished(frame, rows)
    shown = [named for column in columns for named in _named(column, there) if named.metric in frame.columns]
    states = {run["fingerprint"]: run["status"] for run in cells(frame).to_dict("records")}
    records = []
    for row, values in zip(rows, finished_by_row(frame, rows), strict=True):
        of_row = [states[fingerprint] for fingerprint in row.fingerprints if fingerprint in states]
        running = sum(state in UNDER_WAY for state in of_row)
        record: dict[str, object] = {**row.labels, "n": len(values), f"n{PLANNED}": len(row.fingerprints)}
        record |= {"failed": len(of_row) - running - len(values), "running": running}
        for column in shown:
            record |= _summary(column, values)
        if under_way:
            record |= dict(zip((column.header for column in SO_FAR_COLUMNS), so_far(frame, row), strict=True))
        records.append(record)
    table = pd.DataFrame(records)
    nowhere = [name for name in ("failed", "running") if name in table and not table[name].any()]
    unknown = [column.header for column in SO_FAR_COLUMNS if under_way and not table[column.header].notna().any()]
    return table.drop(columns=[*nowhere, *unknown])


def _summary(column: Column, values: pd.DataFrame) -> dict[str, float]:
    """Values of a metric in a table: its mean over the seeds, and the error bars."""
    series = values[column.metric].astype(float).dropna() / column.unit if len(values) else pd.Series(dtype=float)
    summary = {column.header: float(series.mean())}
    if not column.with_spread:
        return summary
    summary[column.header + SPREAD] = float(series.std(ddof=1))
    known = len(series) > 0 and bool(np.isfinite(series).all())
    bounds = mean_interval(series.tolist())[1:3] if known else (float("nan"),) * 2
    summary |= {column.header + end: bound for end, bound in zip(OVER_SEEDS, bounds, strict=True)}
    for name, end in zip(interval_names(column.metric), OVER_IMAGES, strict=True):
        if name in values and values[name].notna().any():
            summary[column.header + end] = float(values[name].astype(float).mean() / column.unit)
    return summary
