"""Curves of a row over its training seeds as tidy frames: R(t), the context ablations, distance by NFE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pforce.metrics.names import MetricName, read_names
from pforce.results.frames import Row, finished
from pforce.results.statistics import mean_interval


def _measured(values: pd.DataFrame, kind: str) -> Iterator[tuple[MetricName, pd.Series[Any]]]:
    """The metrics of a kind that any run has, without bounds and counts."""
    for text, name in read_names(values.columns).items():
        if name.kind == kind and name.beside is None and values[text].notna().any():
            yield name, values[text]


def _over_seeds(values: pd.Series) -> dict[str, float]:
    """Mean with its 95 % interval over seeds, and n; NaN bounds for one seed."""
    interval = mean_interval(values.dropna().astype(float).tolist())
    return interval._asdict()


def difficulty_curve(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    """R by t over seeds: t, mean, low, high, n. Empty where no run of the row has it."""
    values = finished(frame, row)
    found = {name.t: series for name, series in _measured(values, "difficulty/pearson")}
    return pd.DataFrame([{"t": t, **_over_seeds(series)} for t, series in sorted(found.items())])


def context_curve(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    """Loss on uncertain patches by context time: t, time, mean, low, high, n, and its change against no context in
    percent, paired by seed: change, change_low, change_high."""
    values = finished(frame, row)
    records = []
    for name, loss in _measured(values, "context/loss"):
        if name.context_time is not None:
            start = values[str(replace(name, context_time=None))]
            change = _over_seeds(100 * (loss / start - 1))
            records.append(
                {
                    "t": name.t,
                    "time": name.context_time,
                    **_over_seeds(loss),
                    "change": change["mean"],
                    "change_low": change["low"],
                    "change_high": change["high"],
                }
            )
    return pd.DataFrame(records).sort_values(["t", "time"], ignore_index=True) if records else pd.DataFrame()


def log_sigma_quantiles(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    """Quantiles of log-σ on uncertain patches: t, kind (alone, context), quantile, mean over seeds, n."""
    values = finished(frame, row)
    records = []
    for name, log_sigma in _measured(values, "context/log_sigma"):
        if isinstance(name.statistic, int):
            quantile = {"t": name.t, "kind": name.shown, "quantile": name.statistic / 100}
            records.append({**quantile, **_over_seeds(log_sigma)})
    order = ["t", "kind", "quantile"]
    return pd.DataFrame(records).sort_values(order, ignore_index=True) if records else pd.DataFrame()


def nfe_curves(frame: pd.DataFrame, rows: Mapping[str, Row], metric: str) -> pd.DataFrame:
    """A metric by NFE, for rows named NAME @NFE: name, nfe (the budget; the NFE spent may be one less), mean, sd, n."""
    records = []
    for full_name, row in rows.items():
        values, (name, nfe) = finished(frame, row), full_name.split(" @")
        if len(values) and metric in values:
            of_seeds = values[metric].dropna().astype(float)
            records.append(
                {
                    "name": name,
                    "nfe": float(nfe),
                    "mean": float(of_seeds.mean()) if len(of_seeds) else np.nan,
                    "sd": float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else np.nan,
                    "n": len(of_seeds),
                }
            )
    return pd.DataFrame(records)
