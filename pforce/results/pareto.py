"""The Pareto front of samplers, quality against compute: flags and figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

COLOURS = {"euler": "#000000", "dual_loop": "#0072b2", "look_ahead": "#d55e00", "random_order": "#999999"}
"""Colours of samplers: Okabe & Ito's, which colour-blind readers can distinguish."""
MARKERS = {"euler": "o", "dual_loop": "s", "look_ahead": "^", "random_order": "x"}
OTHERS = (("#009e73", "D"), ("#cc79a7", "v"), ("#e69f00", "P"), ("#56b4e9", "X"))
"""Colours and markers of all other samplers, in turn."""


def on_front(frame: pd.DataFrame, objectives: Sequence[str]) -> pd.Series:
    """True for rows on the front: no other row is at least as good in all objectives (smaller is better) and better in
    one."""
    values = frame[list(objectives)].to_numpy(dtype=float)
    no_worse = (values[:, None, :] <= values[None, :, :]).all(axis=2)  # [a, b]: a is nowhere worse than b
    better = (values[:, None, :] < values[None, :, :]).any(axis=2)
    return pd.Series(~(no_worse & better).any(axis=0), index=frame.index)


def front_figure(frame: pd.DataFrame, distance: str, *, compute: str = "NFE") -> Figure:
    """Distance by compute: one point per setting, the front as a line with filled points.

    Args:
        frame: frame with the columns `sampler`, `front` (bool), the distance and the compute.
    """
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axis = figure.subplots()
        front = frame[frame["front"]].sort_values(compute)
        axis.plot(front[compute], front[distance], color="#bbbbbb", linewidth=1.5, zorder=1, label="front")
        there = set(frame["sampler"])
        known, others = [name for name in COLOURS if name in there], sorted(there - set(COLOURS))
        for sampler in [*known, *others]:
            if sampler in COLOURS:
                colour, marker = COLOURS[sampler], MARKERS[sampler]
            else:
                colour, marker = OTHERS[others.index(sampler) % len(OTHERS)]
            rows = frame[frame["sampler"] == sampler]
            for flagged, alpha in ((False, 0.35), (True, 1.0)):
                some = rows[rows["front"] == flagged]
                axis.scatter(
                    some[compute], some[distance], marker=marker, color=colour, alpha=alpha, s=34,
                    label=sampler if flagged == bool(rows["front"].any()) else None, zorder=2,
                )  # fmt: skip
        axis.set_xlabel("function evaluations per image (NFE)" if compute == "NFE" else compute)
        axis.set_ylabel(distance)
        # Few bad values must not flatten the differences that matter: they are only counted. The front is always drawn.
        top = max(1.05 * np.quantile(frame[distance], 0.85), 1.02 * front[distance].max())
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
        axis.set_ylim(0.98 * frame[distance].min(), top)
        if above := int((frame[distance] > top).sum()):
            axis.text(0.4, 0.99, f"{above} above {top:.1f}", transform=axis.transAxes, va="top", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=compute == "NFE"))
        axis.grid(alpha=0.25, which="both")
        axis.legend(frameon=False, fontsize=8)
    return figure
