"""The table of a sweep: a row a cell, means and spread over seeds, never the best of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from rich.table import Table

SPREAD = " sd"
"""Suffix of the columns that hold a standard deviation over seeds (n − 1)."""


class Column(NamedTuple):
    """A metric as a column."""

    metric: str
    header: str
    decimals: int
    with_spread: bool
    unit: float = 1.0
    """What the column shows one of."""


QUALITY_COLUMNS = (
    Column("val/loss", "val loss", 4, True),
    Column("fd/openmoji", "fd/openmoji", 2, True),
    Column("difficulty/pearson_t0.20", "R(0.2)", 3, True),
    Column("difficulty/pearson_t0.60", "R(0.6)", 3, True),
)
CALIBRATION_COLUMNS = (
    Column("calibration/error_t0.20", "calib(0.2)", 3, True),
    Column("calibration/error_t0.60", "calib(0.6)", 3, True),
)
"""For sweeps that ask for them: root mean square log ratio of observed to expected squared error, 0 is perfect."""
COST_COLUMNS = (
    Column("cost/images_seen", "images seen", 0, False),
    Column("fd/openmoji_images", "fd images", 0, False),
    Column("cost/nfe", "NFE", 0, False),
    Column("cost/forward_passes", "passes", 0, False),
    Column("cost/flops_per_image", "GFLOPs/image", 2, False, 1e9),
    Column("cost/sampling_seconds_per_image", "s/image", 4, False),
    Column("cost/seconds", "seconds", 0, False),
    Column("cost/device_hours", "device-hours", 4, False),
)
COLUMNS = (*QUALITY_COLUMNS, *COST_COLUMNS)
"""What every sweep's table shows."""

DECILE = re.compile(r"calibration/(expected|observed)_t(\d\.\d+)_d(\d+)")


class Row(NamedTuple):
    """A cell of the table and the work it stands for."""

    labels: Mapping[str, str]
    """Axis → value as shown; values with one distribution are one row, such as sigma "0.5, 0.6"."""
    fingerprints: Sequence[str]
    """One a seed."""


def _finished(frame: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The finished runs of a row, one a fingerprint: the newest."""
    if frame.empty:
        return frame
    chosen = frame[(frame["status"] == "FINISHED") & frame["fingerprint"].isin(row.fingerprints)]
    return chosen.sort_values("start_time").drop_duplicates("fingerprint", keep="last")


def cell_table(frame: pd.DataFrame, rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> pd.DataFrame:
    """Means over the finished seeds of each row, standard deviations beside them, and their number n.

    Args:
        frame: of `pforce.results.runs`. Runs with one fingerprint are one result: the newest is used.
        columns: what is shown, in order; a metric that no run has is left out.
    """
    shown = [column for column in columns if column.metric in frame.columns]
    records = []
    for row in rows:
        record: dict[str, object] = dict(row.labels)
        values = _finished(frame, row)
        record["n"] = len(values)
        for column in shown:
            series = values[column.metric].astype(float) / column.unit if len(values) else pd.Series(dtype=float)
            record[column.header] = series.mean()
            if column.with_spread:
                record[column.header + SPREAD] = series.std(ddof=1)
        records.append(record)
    return pd.DataFrame(records)


def calibration_curves(frame: pd.DataFrame, rows: Sequence[Row]) -> pd.DataFrame:
    """Calibration by deciles: row (its number), the row's labels, t, decile, expected, observed, and n.

    Means over the finished seeds of each row that have the metrics; a row without any is not there.

    Args:
        frame, rows: as of `cell_table`.
    """
    records = []
    matches = [match for name in frame.columns if (match := DECILE.fullmatch(name))]
    points = sorted({(match[2], int(match[3])) for match in matches})
    for number, row in enumerate(rows):
        values = _finished(frame, row)
        for t, decile in points:
            names = [f"calibration/{kind}_t{t}_d{decile}" for kind in ("expected", "observed")]
            pairs = values[names].astype(float).dropna()
            if len(pairs):
                expected, observed = pairs.mean()
                record = {"t": float(t), "decile": decile, "expected": expected, "observed": observed, "n": len(pairs)}
                records.append({"row": number, **row.labels, **record})
    return pd.DataFrame(records)


def _display(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: `mean ± sd` where n > 1, a dash where nothing was measured."""
    decimals = {column.header: column.decimals for column in (*COLUMNS, *CALIBRATION_COLUMNS)}
    shown = pd.DataFrame()
    for name in table.columns:
        if name.endswith(SPREAD):
            continue
        if name not in decimals:
            shown[name] = table[name].astype(str)
            continue
        places = decimals[name]
        texts = []
        for index, mean in enumerate(table[name]):
            spread = table[name + SPREAD].iloc[index] if name + SPREAD in table else float("nan")
            text = "–" if pd.isna(mean) else f"{mean:,.{places}f}"
            texts.append(text if pd.isna(spread) else f"{text} ± {spread:.{places}f}")
        shown[name] = texts
    return shown


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table, numbers as in the terminal."""
    return _display(table).to_markdown(index=False, disable_numparse=True, stralign="right")


def to_terminal(table: pd.DataFrame, title: str) -> Table:
    """A rich table."""
    shown = _display(table)
    result = Table(title=title, title_justify="left")
    for name in shown.columns:
        result.add_column(str(name), justify="right", overflow="fold")
    for _, row in shown.iterrows():
        result.add_row(*(str(value) for value in row))
    return result
