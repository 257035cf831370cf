"""Figure of quality against images seen and device-hours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pforce.results.figures import MARKERS, SEQUENCE, style
from pforce.results.frames import Row
from pforce.results.growth import curves

MOST_LINES = 12
"""Most settings whose lines have a name in the legend."""
MOST_METRICS = 4
AGAINST = {"images": "images seen", "hours": "device-hours of training"}


def growth_figure(frame: pd.DataFrame, rows: Sequence[Row], metrics: Sequence[str]) -> Figure | None:
    """One column per metric: above against images seen, below against device-hours; a line per setting, with bars of
    one standard deviation over seeds where n > 1. None where nothing is measured along the way.

    Args:
        metrics: metrics to draw, at most four.
    """
    found = {metric: curves(frame, rows, metric) for metric in metrics}
    found = {metric: values for metric, values in found.items() if len(values) and values["images"].nunique() > 1}
    found = dict(list(found.items())[:MOST_METRICS])
    if not found:
        return None
    names = list(dict.fromkeys(name for values in found.values() for name in values["name"]))
    shades = mpl.colormaps[SEQUENCE]([0.82 * k / max(1, len(names) - 1) for k in range(len(names))])
    with style():
        figure = Figure(figsize=(3.6 * len(found) + (2.2 if len(names) > 1 else 0), 5.6), layout="constrained")
        panels = figure.subplots(2, len(found), squeeze=False)
        for column, (metric, values) in enumerate(found.items()):
            for row, against in enumerate(AGAINST):
                for number, name in enumerate(names):
                    look = {"color": shades[number], "marker": MARKERS[number % len(MARKERS)], "label": name}
                    _line(panels[row][column], values[values["name"] == name], against, look)
                panels[row][column].set_xscale("log")
                panels[row][column].set_xlabel(AGAINST[against])
                panels[row][column].grid(alpha=0.25)
            panels[0][column].set_title(metric, loc="left")
        if 1 < len(names) <= MOST_LINES:
            handles, labels = panels[0][0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _line(axis: Axes, values: pd.DataFrame, against: str, look: dict[str, Any]) -> None:
    bars = values["sd"].fillna(0.0)
    axis.errorbar(
        values[against], values["mean"], yerr=bars if bool((bars > 0).any()) else None,
        markersize=4, capsize=3, linewidth=1.2, **{**look, "label": look["label"].replace("$", r"\$")},
    )  # fmt: skip
    axis.margins(y=0.1)
