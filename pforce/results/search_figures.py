"""Figures of a search: its course, or the front of two objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pforce.results.figures import BLUE, style

MARKED = "#d55e00"
MANY = 20
"""Number of trials from which on the worst are not drawn."""


def search_figure(points: pd.DataFrame, metrics: Sequence[str], maximize: Sequence[bool]) -> Figure | None:
    """The trials of a search: of one objective its value by trial with the best so far, of two or more the first two
    against each other with the front, and beside it each by trial. None where no trial is known.

    Args:
        points: columns `trial`, `verdict`, and the objectives under `0`, `1`, …; smaller numbers are not always better.
        maximize: whether large values are wanted, for each objective.
    """
    known = points.dropna().sort_values("trial")
    if known.empty:
        return None
    several = len(metrics) > 1
    panels = len(metrics) + several
    with style():
        figure = Figure(figsize=(4.4 * panels, 3.4), layout="constrained")
        places = list(figure.subplots(1, panels, squeeze=False)[0])
        if several:
            _front(places.pop(0), known, metrics)
        for number, (axis, metric, large) in enumerate(zip(places, metrics, maximize, strict=True)):
            _course(axis, known, str(number), metric, large, best=not several)
    return figure


def _course(axis: Axes, known: pd.DataFrame, name: str, metric: str, large: bool, *, best: bool) -> None:
    allowed = known["verdict"] != "beyond a limit"
    axis.scatter(known["trial"][allowed], known[name][allowed], color=BLUE, s=26, label="trial")
    if not allowed.all():
        axis.scatter(
            known["trial"][~allowed], known[name][~allowed], color="0.6", marker="x", s=26, label="beyond a limit"
        )
    if best and allowed.any():
        values = known[name][allowed]
        so_far = values.cummax() if large else values.cummin()
        axis.step(known["trial"][allowed], so_far, where="post", color=MARKED, linewidth=1.4, label="best so far")
    axis.set_xlabel("trial")
    axis.set_title(f"{metric} ({'larger' if large else 'smaller'} is better)", loc="left")
    axis.grid(alpha=0.25)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if best or not allowed.all():
        axis.legend(frameon=False, fontsize=8)
    # Few bad values must not flatten the differences that matter: of many trials the worst are only counted.
    worst = 0.1 if len(known) >= MANY else 0.0
    low, high = np.quantile(known[name], [worst, 1.0] if large else [0.0, 1 - worst])
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    axis.set_ylim(low - room, high + room)
    if hidden := int((~known[name].between(low - room, high + room)).sum()):
        axis.text(0.02, 0.02, f"{hidden} beyond the axis", transform=axis.transAxes, fontsize=8, color="0.4")


def _front(axis: Axes, known: pd.DataFrame, metrics: Sequence[str]) -> None:
    front = known[known["verdict"] == "front"].sort_values("1")
    others = known[known["verdict"] != "front"]
    axis.scatter(others["1"], others["0"], color="0.65", s=26, label="trial")
    axis.plot(front["1"], front["0"], color=MARKED, marker="o", markersize=5, linewidth=1.4, label="front")
    axis.set_xlabel(metrics[1])
    axis.set_ylabel(metrics[0])
    axis.set_title("front", loc="left")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
