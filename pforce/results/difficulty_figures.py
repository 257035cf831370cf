"""Figures of the difficulty head (R(t), classes, calibration, maps) and of the context ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pforce.base.files import write_bytes
from pforce.metrics.calibration import Calibration
from pforce.metrics.context import ContextHelps, ContextUncertainty
from pforce.metrics.difficulty import DifficultyCorrelation, PatchErrors, correlation_of
from pforce.metrics.intervals import Estimate
from pforce.results.figures import calibration_figure
from pforce.results.page import png
from pforce.results.paper import paper_table

OURS, PAPER, BASELINE = "#0072b2", "#d55e00", "#767676"
"""Okabe & Ito's blue and vermilion, which colour-blind readers can distinguish, and a grey."""
BAND = 0.2
"""Opacity of an interval."""
BINS = 60
PANELS_A_ROW = 3
DPI = 160
"""Resolution that `png` writes."""
TILE, GAP = 128, 10
"""Pixels per map with the gap around it, and the gap."""


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def _save(figure: Figure, path: Path) -> None:
    write_bytes(path, png(figure), lasting=False)


def _grid(panels: int, width: float, height: float, *, legend: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with a number of panels of a size in inches, at most PANELS_A_ROW per row, with shared axes."""
    columns = min(panels, PANELS_A_ROW)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns + legend, height * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for place in places[panels:]:
        place.remove()
    for above in places[max(0, panels - columns) : panels]:
        above.tick_params(labelbottom=True)  # also where the row below is not full
    return figure, places[:panels]


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _correlation_lines(axis: Axes, correlations: Sequence[DifficultyCorrelation], colour: str, whose: str) -> None:
    t = [r.t for r in correlations]
    low, high = np.array([r.pearson_interval for r in correlations]).T
    axis.fill_between(t, low, high, color=colour, alpha=BAND, linewidth=0)
    axis.plot(t, [r.pearson for r in correlations], color=colour, marker="o", markersize=3, label=f"R{whose}")
    axis.plot(
        t, [r.spearman for r in correlations], color=colour, linestyle="--", linewidth=0.9, label=f"Spearman's{whose}"
    )


def difficulty_figure(
    correlations: Sequence[DifficultyCorrelation],
    path: Path,
    *,
    baseline: Sequence[DifficultyCorrelation] | None = None,
) -> None:
    """Draw R by t with its 95 % interval over images as a band, Spearman's as a dashed line, and the paper's points as
    open markers.

    Args:
        correlations: correlations of one model, in the order of t.
        baseline: correlations of another model for comparison, in grey.
    """
    paper = paper_table("difficulty")
    with _style():
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axis = figure.subplots()
        _correlation_lines(axis, correlations, OURS, "")
        if baseline is not None:
            _correlation_lines(axis, baseline, BASELINE, ", baseline")
        axis.plot(
            paper["t"], paper["pearson_r"], linestyle="", marker="s", markersize=6, markerfacecolor="none",
            color=PAPER, label="paper",
        )  # fmt: skip
        axis.set(xlim=(0, 1), xlabel="t", ylabel="correlation of σ with the squared error")
        lowest = min(line.get_ydata().min() for line in axis.lines)  # type: ignore[union-attr]
        axis.set_ylim(min(0.0, 1.05 * lowest) if np.isfinite(lowest) else 0.0, 1)
        images, patches = correlations[0].images, correlations[0].patches
        axis.set_title(f"{images:,} images, {patches:,} patches; band: 95 % over images", loc="left", fontsize=9)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
        _save(figure, path)


def difficulty_scatter(errors: PatchErrors | Sequence[PatchErrors], path: Path) -> None:
    """Draw the squared error by σ, with counts of patches in hexagons on logarithmic axes; one panel per timestep.

    The dashed line is squared error = σ², on which a calibrated model's mean errors lie. Zeros are drawn at the edge.
    """
    several = [errors] if isinstance(errors, PatchErrors) else list(errors)
    sides = []
    for values in ([each.sigma for each in several], [each.observed for each in several]):
        flat = np.concatenate([value.ravel() for value in values])
        positive = flat[flat > 0]
        sides.append((positive.min() / 1.3, positive.max() * 1.3) if len(positive) else (0.1, 1.0))
    (left, right), (bottom, top) = sides
    with _style():
        figure, panels = _grid(len(several), 2.9, 2.8, legend=0.7)
        drawn = []
        for axis, each in zip(panels, several, strict=True):
            extent = (np.log10(left), np.log10(right), np.log10(bottom), np.log10(top))
            cells = axis.hexbin(
                np.clip(each.sigma.ravel(), left, right), np.clip(each.observed.ravel(), bottom, top),
                xscale="log", yscale="log", extent=extent, gridsize=32, mincnt=1, cmap="viridis", linewidths=0.1,
            )  # fmt: skip
            drawn.append(cells)
            line = np.array([left, right])
            axis.plot(line, line**2, color=PAPER, linestyle="--", linewidth=1.2)
            axis.set(xlim=(left, right), ylim=(bottom, top))
            axis.set_title(f"t = {each.t:g}: R = {correlation_of(each).pearson:.2f}", loc="left")
            axis.grid(alpha=0.25)
            if axis.get_subplotspec().is_first_col():  # type: ignore[union-attr]
                axis.set_ylabel("squared error of a patch")
        for axis in panels[-min(len(panels), PANELS_A_ROW) :]:
            axis.set_xlabel("predicted σ")
        norm = LogNorm(1, max(2, *(cells.get_array().max() for cells in drawn)))  # type: ignore[union-attr]
        for cells in drawn:
            cells.set_norm(norm)
        figure.colorbar(drawn[-1], ax=panels, label="patches")
        _save(figure, path)


def r_by_class(by_class: Mapping[str, DifficultyCorrelation], path: Path) -> None:
    """Draw R of each class as `class_figure` does."""
    found = {name: Estimate(r.pearson, *r.pearson_interval, r.images) for name, r in by_class.items()}
    times = ", ".join(f"{t:g}" for t in sorted({r.t for r in by_class.values()}))
    class_figure(found, f"R at t = {times}", path)


def class_figure(by_class: Mapping[str, Estimate], label: str, path: Path) -> None:
    """Draw a value of each class with its interval over images, the highest on top, with the number of images beside
    the name.

    Args:
        label: label of the values.
    """
    ordered = sorted(by_class.items(), key=lambda item: (np.nan_to_num(item[1].value, nan=-2.0), item[0]))
    values = np.array([each.value for _, each in ordered])
    # Where a class has few images, a bootstrap interval need not include the value itself.
    below = np.maximum(0, values - np.array([each.low for _, each in ordered]))
    above = np.maximum(0, np.array([each.high for _, each in ordered]) - values)
    with _style():
        figure = Figure(figsize=(5.6, 0.26 * len(ordered) + 1.0), layout="constrained")
        axis = figure.subplots()
        axis.errorbar(
            values, range(len(ordered)), xerr=np.stack([below, above]), fmt="o", markersize=4, color=OURS, capsize=2.5,
            linewidth=1.2,
        )  # fmt: skip
        axis.set_yticks(range(len(ordered)), [f"{name} ({each.n:,})" for name, each in ordered])
        axis.set_ylim(-0.7, len(ordered) - 0.3)
        axis.set_xlabel(f"{label}\n(images in brackets, 95 % intervals over them)")
        axis.grid(axis="x", alpha=0.25)
        _save(figure, path)


def calibrations_figure(calibrations: Sequence[Calibration], path: Path) -> None:
    """Draw observed by expected squared error in deciles, one panel per timestep, as in a sweep's
    `calibration_figure`."""
    frame = pd.DataFrame(
        {"row": each.images, "images": each.images, "t": each.t, "expected": expected, "observed": observed}
        for each in calibrations
        for expected, observed in zip(each.expected, each.observed, strict=True)
    )
    calibration_figure(frame, ["images"], path, symbol="images")


def _minimum(axis: Axes, times: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Mark and label the lowest point of a curve."""
    k = int(values.argmin())
    axis.plot(times[k], values[k], marker="o", markersize=6, color=OURS, zorder=3)
    axis.annotate(
        f"t′ = {times[k]:.2f}", (times[k], values[k]), xytext=(0, -7), textcoords="offset points", ha="center",
        va="top", fontsize=8, color=OURS,
    )  # fmt: skip


def context_helps_figure(curves: Sequence[ContextHelps], path: Path) -> None:
    """Draw the loss on uncertain patches by context time, one column per t: the loss above, its change in percent
    below.

    The paper's losses are of another model on latents, so only their change from the start is drawn beside ours. Each
    upper panel has its own scale; all lower panels share one.
    """
    paper = paper_table("context_helps")
    with _style():
        figure = Figure(figsize=(2.9 * len(curves), 4.8), layout="constrained")
        rows = figure.subplots(2, len(curves), squeeze=False, sharex="col")
        for axis, below, curve in zip(*rows, curves, strict=True):
            times, start = curve.context_times, curve.loss[0]
            axis.fill_between(times, curve.low, curve.high, color=OURS, alpha=BAND, linewidth=0)
            axis.plot(times, curve.loss, color=OURS)
            axis.axhline(start, color=BASELINE, linestyle="--", linewidth=1)
            _minimum(axis, times, curve.loss)
            axis.set_title(f"t = {curve.t:g}", loc="left")
            axis.margins(y=0.12)
            below.fill_between(
                times, 100 * curve.change_low / start, 100 * curve.change_high / start, color=OURS, alpha=BAND,
                linewidth=0,
            )  # fmt: skip
            below.plot(times, 100 * curve.change / start, color=OURS, label=f"ours, {curve.images:,} images")
            below.axhline(0, color=BASELINE, linestyle="--", linewidth=1, label="no context")
            theirs = paper[np.isclose(paper["t"], curve.t)].sort_values("context_t")
            if len(theirs):
                losses = theirs["uncertain_region_val_loss"].to_numpy()
                below.plot(
                    theirs["context_t"], 100 * (losses / losses[0] - 1), color=PAPER, marker="s", markersize=5,
                    markerfacecolor="none", linestyle=":", linewidth=1, label="paper (three points read off)",
                )  # fmt: skip
            below.set_xlabel("context time t′")
            for each in (axis, below):
                each.set_xlim(0, 1.02)
                each.grid(alpha=0.25)
        lows, highs = zip(*(axis.get_ylim() for axis in rows[1]), strict=True)
        for axis in rows[1]:
            axis.set_ylim(min(lows), max(highs))
        rows[0, 0].set_ylabel("loss on uncertain patches")
        rows[1, 0].set_ylabel("change in %")
        most = max(rows[1], key=lambda axis: len(axis.get_legend_handles_labels()[1]))
        figure.legend(*most.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        _save(figure, path)


def context_uncertainty_figure(results: Sequence[ContextUncertainty], path: Path) -> None:
    """Draw the distributions of predicted log-σ on uncertain patches without and with context, one panel per t, with
    the mean difference in the title."""
    values = np.concatenate([part for each in results for part in (each.alone, each.with_context)])
    low, high = np.quantile(values, (1e-4, 1 - 1e-4)).tolist()
    edges = np.linspace(low, high, BINS + 1)
    with _style():
        figure, panels = _grid(len(results), 3.0, 2.9)
        for axis, each in zip(panels, results, strict=True):
            for part, colour, label in (
                (each.alone, BASELINE, "no context"),
                (each.with_context, OURS, "with context"),
            ):
                # The few values beyond the edges count in the outermost bars.
                heights, _ = np.histogram(np.clip(part, edges[0], edges[-1]), edges)
                share = 100 * heights / len(part)
                axis.stairs(share, edges, color=colour, fill=True, alpha=0.18)
                axis.stairs(share, edges, color=colour, linewidth=1.3, label=label)
                axis.axvline(float(part.mean()), color=colour, linestyle="--", linewidth=1)
            d = each.difference
            axis.set_title(
                f"t = {each.t:g}, context at {each.context_time:g}\n"
                f"{_signed(d.value)} ({_signed(d.low)} … {_signed(d.high)})",
                loc="left", fontsize=9,
            )  # fmt: skip
            axis.grid(alpha=0.25)
            if axis.get_subplotspec().is_first_col():  # type: ignore[union-attr]
                axis.set_ylabel("uncertain patches in %")
        for axis in panels[-min(len(panels), PANELS_A_ROW) :]:
            axis.set_xlabel("predicted log σ")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        _save(figure, path)


def _nearest(picture: NDArray[Any], size: int) -> NDArray[Any]:
    """Enlarge a picture (h, w, …) to (size, size, …) by nearest neighbours."""
    rows, columns = (np.arange(size) * side // size for side in picture.shape[:2])
    return picture[rows][:, columns]


def uncertainty_maps(
    images: Tensor | NDArray[np.uint8], sigma: Mapping[float, NDArray[np.floating[Any]]], path: Path
) -> None:
    """Draw one row per image: the image, then its σ at several timesteps, all on one colour scale.

    Args:
        images: images (n, 3, H, W) uint8.
        sigma: t → maps (n, h, w).
    """
    pictures = np.asarray(images).transpose(0, 2, 3, 1)
    times = sorted(sigma)
    low, high = min(float(sigma[t].min()) for t in times), max(float(sigma[t].max()) for t in times)
    rows, columns = len(pictures), len(times) + 1
    colours = ScalarMappable(Normalize(low, high), "magma")
    # One picture, composed here in the figure's own pixels, and axes at fixed places: a sweep draws this once per
    # trial, and one image per map, laid out by matplotlib, takes twice as long.
    mosaic = np.full((rows * TILE, columns * TILE, 3), 255, np.uint8)
    for row, picture in enumerate(pictures):
        maps = (colours.to_rgba(sigma[t][row], bytes=True)[..., :3] for t in times)
        for column, tile in enumerate((picture, *maps)):
            top, left = row * TILE + GAP // 2, column * TILE + GAP // 2
            mosaic[top : top + TILE - GAP, left : left + TILE - GAP] = _nearest(tile, TILE - GAP)
    width, height, header, bar = columns * TILE / DPI, rows * TILE / DPI, 0.25, 0.85
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(width + bar, height + header))
        full = (width + bar, height + header)
        figure.figimage(mosaic)
        for column, t in enumerate(times, start=1):
            place = (column + 0.5) * TILE / DPI / full[0], (height + 0.04) / full[1]
            figure.text(*place, f"t = {t:g}", ha="center", va="bottom")
        tall = min(height - 0.2, 4.0)
        bounds = ((width + 0.08) / full[0], (height - tall) / 2 / full[1], 0.14 / full[0], tall / full[1])
        figure.colorbar(colours, cax=figure.add_axes(bounds), label="σ")
        _save(figure, path)
