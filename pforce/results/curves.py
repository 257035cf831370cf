"""Curves of a row over its training seeds: R(t), the context ablations, distance against NFE. Tidy frames."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from pforce.results.frames import Row, finished
from pforce.results.statistics import mean_interval

CORRELATION = re.compile(r"difficulty/pearson_t(\d\.\d+)")
LOSS = re.compile(r"context/loss_t(\d\.\d+)_at(\d\.\d+)")
LOG_SIGMA = re.compile(r"context/log_sigma_t(\d\.\d+)_(alone|context)_q(\d+)")


def _over_seeds(values: pd.Series) -> dict[str, float]:
    """Mean with its 95 % interval over seeds, and n; NaN bounds for one seed."""
    interval = mean_interval(values.dropna().astype(float).tolist())
    return interval._asdict()


def difficulty_curve(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    """R against t over seeds: t, mean, low, high, n. Empty where no run of the row has it."""
    values = finished(frame, row)
    names = {float(match[1]): name for name in map(str, values.columns) if (match := CORRELATION.fullmatch(name))}
    return pd.DataFrame(
        [{"t": t, **_over_seeds(values[name])} for t, name in sorted(names.items()) if values[name].notna().any()]
    )


def context_curve(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    """Loss on uncertain patches against the context time: t, time, mean, low, high, n, and the same of its change
    against no context in percent, seed by seed: change, change_low, change_high."""
    values = finished(frame, row)
    records = []
    for name in map(str, values.columns):
        match = LOSS.fullmatch(name)
        if match and values[name].notna().any():
            start = values[f"context/loss_t{float(match[1]):.2f}"]
            change = _over_seeds(100 * (values[name] / start - 1))
            records.append(
                {
                    "t": float(match[1]),
                    "time": float(match[2]),
                    **_over_seeds(values[name]),
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
    for name in map(str, values.columns):
        match = LOG_SIGMA.fullmatch(name)
        if match and values[name].notna().any():
            mean = _over_seeds(values[name])
            records.append({"t": float(match[1]), "kind": match[2], "quantile": int(match[3]) / 100, **mean})
    order = ["t", "kind", "quantile"]
    return pd.DataFrame(records).sort_values(order, ignore_index=True) if records else pd.DataFrame()


def nfe_curves(frame: pd.DataFrame, rows: Mapping[str, Row], metric: str) -> pd.DataFrame:
    """A metric against NFE, of rows that are called NAME @NFE: name, nfe (the budget; what is spent of it may be one
    less), mean, sd, n."""
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
