"""Figures of a sweep."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from pforce.results.tables import SPREAD

PANELS = ("fd/openmoji", "val loss", "R(0.2)", "R(0.6)")
BLUE = "#2b6cb0"


def cell_figure(table: pd.DataFrame, axes: list[str], path: Path) -> None:
    """A panel a metric, a point a cell, bars of one standard deviation over seeds where n > 1."""
    panels = [name for name in PANELS if name in table and table[name].notna().any()]
    if not panels:
        return
    labels = ["\n".join(f"{axis} {row[axis]}" for axis in axes) for _, row in table.iterrows()]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(2.4, 0.62 * len(table) + 1.0) * len(panels), 3.0), layout="constrained")
        for axis, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            spread = table[name + SPREAD].fillna(0.0)
            axis.errorbar(range(len(table)), table[name], yerr=spread, fmt="o", color=BLUE, capsize=3)
            axis.set_title(name, loc="left")
            axis.set_xticks(range(len(table)), labels)
            axis.margins(x=0.15, y=0.2)
            axis.grid(axis="y", alpha=0.25)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
