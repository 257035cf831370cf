"""Figures of a sweep."""

from __future__ import annotations

import io
import math
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from pforce.base.files import write_bytes
from pforce.results.frames import distance_of
from pforce.results.page import png
from pforce.results.tables import SPREAD

PANELS_A_ROW = 4
CAPTION_WIDTH = 52
"""Characters per line of a picture's caption."""
MOST_LABELLED, WIDE = 40, 12.0
"""Most rows whose points are labelled, and the width of a panel with more, in inches."""
LONG_LABEL = 10
"""Characters from which on labels of several cells would overlap."""
BLUE = "#2b6cb0"
SEQUENCE = "viridis"
"""Colour map that rises in lightness and is safe for colour-blind readers; its yellow end is too pale for lines on
white."""
FEW_DECADES = 100
MARKERS = "osD^v<>PX*"
_DRAWING = threading.RLock()


@contextmanager
def style() -> Iterator[None]:
    """Text size and frame of every figure. One thread draws at a time, as the settings are the process's."""
    with _DRAWING, mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        yield


def panels_of(table: pd.DataFrame) -> list[str]:
    """Names of the columns that are drawn: those with a spread over seeds, distances first."""
    with_values = [name for name in table if f"{name}{SPREAD}" in table and table[name].notna().any()]
    return sorted(map(str, with_values), key=lambda name: distance_of(name) is None)


def cell_figure(table: pd.DataFrame, axes: Sequence[str]) -> Figure | None:
    """One panel per metric with one point per row, and bars of one standard deviation over seeds where n > 1; None
    where the table has no metric."""
    panels = panels_of(table)
    if not panels:
        return None
    many = len(table) > MOST_LABELLED
    rows = len(panels) if many else math.ceil(len(panels) / PANELS_A_ROW)
    columns = math.ceil(len(panels) / rows)
    width = WIDE if many else max(2.4, 0.62 * len(table) + 1.0)
    with style():
        figure = Figure(figsize=(width * columns, 3.0 * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flatten()
        for place in places[len(panels) :]:
            place.remove()
        for axis, name in zip(places[: len(panels)], panels, strict=True):
            spread = table[name + SPREAD].fillna(0.0)
            size = {"markersize": 3, "capsize": 0} if many else {"capsize": 3}
            axis.errorbar(range(len(table)), table[name], yerr=spread, fmt="o", color=BLUE, **size)
            axis.set_title(name, loc="left")
            if many:
                axis.set_xlabel("row of the table, from 0")
            else:
                _label(axis, table, axes)
            axis.set_xlim(-0.5, len(table) - 0.5)  # all cells, also where one has no value
            axis.margins(y=0.2)
            axis.grid(axis="y", alpha=0.25)
    return figure


def _label(axis: Axes, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Label the points of a panel by the rows' axes."""
    if len(names) == 1:  # its name is shown once below, not at each value
        labels = [str(value) for value in table[names[0]]]
    else:
        labels = ["\n".join(f"{name} {row[name]}" for name in names) for _, row in table.iterrows()]
    slanted = max(map(len, "\n".join(labels).split("\n")), default=0) > LONG_LABEL and len(table) > 3
    axis.set_xticks(range(len(table)), [label.replace("\n", ", ") for label in labels] if slanted else labels)
    if slanted:
        axis.tick_params(axis="x", labelsize=7)
        for text in axis.get_xticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
    axis.set_xlabel(names[0] if len(names) == 1 else "")


def side_by_side(pictures: Sequence[tuple[bytes, str]]) -> bytes:
    """Pictures, as (PNG, caption), beside each other with their captions, as one PNG.

    Raises:
        ValueError: one of them is no picture.
    """
    columns = min(len(pictures), PANELS_A_ROW)
    rows = math.ceil(len(pictures) / columns)
    with style():
        figure = Figure(figsize=(3.2 * columns, 3.5 * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flatten()
        for place in places:
            place.set_axis_off()
        for place, (content, caption) in zip(places, pictures, strict=False):
            try:
                place.imshow(mpl.image.imread(io.BytesIO(content), format="png"))
            except (OSError, SyntaxError) as error:
                raise ValueError(f"{caption}: {error}") from None
            place.set_title("\n".join(textwrap.wrap(caption.replace("$", r"\$"), CAPTION_WIDTH)), fontsize=7)
        return png(figure)


def calibration_figure(curves: pd.DataFrame, axes: list[str], path: Path, *, symbol: str) -> None:
    """Draw observed by expected squared error in deciles: one panel per timestep, one line per row, and a dashed
    diagonal.

    Below the diagonal a model predicts more error than it makes, above it less. Colours show the values of the first
    axis, in the order of the rows; markers show those of all further axes.

    Args:
        curves: frame of `pforce.results.calibration_curves`; nothing is drawn where it is empty.
        symbol: name of the first axis in the legend.
    """
    if curves.empty:
        return
    first, *others = axes
    values = list(curves[first].unique())
    shades = mpl.colormaps[SEQUENCE]([0.82 * k / max(1, len(values) - 1) for k in range(len(values))])
    colour = dict(zip(values, shades, strict=True))
    marker: dict[tuple[str, ...], str] = {}
    legend: dict[str, Artist] = {}
    timesteps = sorted(curves["t"].unique())
    with style():
        figure = Figure(figsize=(3.2 * len(timesteps) + 1.4, 3.4), layout="constrained")
        panels = figure.subplots(1, len(timesteps), squeeze=False)[0]
        for panel, t in zip(panels, timesteps, strict=True):
            here = curves[curves["t"] == t]
            errors = here[["expected", "observed"]].to_numpy()
            low, high = errors[errors > 0].min() / 1.5, errors.max() * 1.5
            panel.plot([low, high], [low, high], color="0.45", linestyle="--", linewidth=1, label="calibrated")
            for _, line in here.groupby("row"):
                rest = tuple(line[name].iloc[0] for name in others)
                value = line[first].iloc[0]
                label = ", ".join([f"{symbol} = {value}", *(f"{n} {v}" for n, v in zip(others, rest, strict=True))])
                panel.plot(
                    line["expected"],
                    line["observed"],
                    color=colour[value],
                    marker=marker.setdefault(rest, MARKERS[len(marker) % len(MARKERS)]),
                    markersize=4,
                    linewidth=1.4,
                    label=label,
                )
            panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
            for side in (panel.xaxis, panel.yaxis):
                # 0.1, 0.2, 0.5, 1 rather than powers of ten, as a panel may include only one of those.
                side.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < FEW_DECADES else (1,)))
                side.set_major_formatter("{x:g}")
                side.set_minor_formatter(NullFormatter())
            panel.set_title(f"t = {t:g}", loc="left")
            panel.set_xlabel("expected squared error")
            panel.grid(alpha=0.25)
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                legend.setdefault(label, handle)
        panels[0].set_ylabel("observed squared error")
        figure.legend(list(legend.values()), list(legend), loc="outside right center", frameon=False)
        write_bytes(path, png(figure), lasting=False)
