"""Quality against images seen and device-hours, of trainings that are measured along the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pforce.metrics.names import CostName
from pforce.records.sweeps import IMAGES
from pforce.results.frames import Row, finished_by_row, smaller_is_better


def along(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Name of each training's setting → its rows, by images seen; empty where rows have no column of images seen."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if not row.labels.get(IMAGES, "").isdecimal():  # which a file may say, whoever wrote it
            return {}
        others = [f"{name} {value}" for name, value in row.labels.items() if name != IMAGES]
        found.setdefault(", ".join(others) or "all", []).append(row)
    return {name: sorted(several, key=lambda row: int(row.labels[IMAGES])) for name, several in found.items()}


def points(values: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A row's seeds: seed, images, hours (device-hours of the training up to there), value.

    Args:
        values: the row's finished cells.
    """
    needed = (metric, CostName.IMAGES_SEEN, CostName.DEVICE_HOURS, CostName.TRAINING_SECONDS, CostName.SECONDS)
    if values.empty or any(name not in values for name in needed):
        return pd.DataFrame(columns=["seed", "images", "hours", "value"])
    # Device-hours of a row include its measurement, on the same devices.
    share = values[CostName.TRAINING_SECONDS] / values[CostName.SECONDS]
    return pd.DataFrame({
        "seed": values["seed"], "images": values[CostName.IMAGES_SEEN],
        "hours": values[CostName.DEVICE_HOURS] * share, "value": values[metric],
    }).dropna()  # fmt: skip


def curves(frame: pd.DataFrame, rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """Means over seeds: name, images, hours, mean, sd (NaN for one seed), n."""
    records = []
    for name, several in along(rows).items():
        for row, values in zip(several, finished_by_row(frame, several), strict=True):
            found = points(values, metric)
            if len(found):
                records.append({
                    "name": name, "images": int(row.labels[IMAGES]), "hours": found["hours"].mean(),
                    "mean": found["value"].mean(), "sd": found["value"].std(), "n": len(found),
                })  # fmt: skip
    return pd.DataFrame(records)


def hours_to_reach(frame: pd.DataFrame, rows: Sequence[Row], metric: str, value: float) -> dict[str, float]:
    """Device-hours of training until a metric is as good as a value, by the setting's name: the mean over seeds of the
    straight line between the two measurements around it; NaN where a seed does not reach it."""
    found = {}
    for name, several in along(rows).items():
        whole = pd.concat([points(values, metric) for values in finished_by_row(frame, several)])
        hours = [_crossing(of_seed.sort_values("images"), metric, value) for _, of_seed in whole.groupby("seed")]
        found[name] = float(np.mean(hours)) if hours else math.nan
    return found


def _crossing(measured: pd.DataFrame, metric: str, wanted: float) -> float:
    sign = 1.0 if smaller_is_better(metric) else -1.0
    before: tuple[float, float] | None = None
    for hours, value in zip(measured["hours"], sign * measured["value"], strict=True):
        if value <= sign * wanted:
            if before is None:
                return float(hours)  # the first measurement is good enough: at most so many
            (earlier, worse) = before
            return float(earlier + (hours - earlier) * (worse - sign * wanted) / (worse - value))
        before = (float(hours), float(value))
    return math.nan


def with_hours(
    table: pd.DataFrame, frame: pd.DataFrame, rows: Sequence[Row], metric: str, value: float
) -> pd.DataFrame:  # fmt: skip
    """The table with a column of device-hours until a metric is as good as a value, the same for all rows of a
    training."""
    hours: Mapping[str, float] = hours_to_reach(frame, rows, metric, value)
    of_row = {id(row): hours[name] for name, several in along(rows).items() for row in several}
    sign = "≤" if smaller_is_better(metric) else "≥"
    return table.assign(**{f"device-hours to {metric} {sign} {value:g}": [of_row[id(row)] for row in rows]})
