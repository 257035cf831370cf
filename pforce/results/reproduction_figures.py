"""Figures of the reproduced tables: our measurements over training seeds, with the paper's own numbers where it has
any."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pforce.results.difficulty_figures import BAND, BASELINE, OURS, PAPER, _style
from pforce.results.figures import MARKERS

CYCLE = ("#767676", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of lines: a grey, then Okabe & Ito's."""


def bars_figure(table: pd.DataFrame, measured: str, paper: str | None = None) -> Figure:
    """Draw one line per row: mean and standard deviation over seeds, and the paper's numbers on an axis of their own.

    Args:
        table: frame with the columns row, `measured` and `measured sd`, and `paper` where there is one.
    """
    with_paper = paper is not None and paper in table and table[paper].notna().any()
    with _style():
        height = 0.34 * len(table) + 1.0
        figure = Figure(figsize=(8.4 if with_paper else 5.6, height), layout="constrained")
        axes = figure.subplots(1, 2 if with_paper else 1, squeeze=False, sharey=True)[0]
        places = np.arange(len(table))[::-1]
        columns = [(measured, OURS, f"measured here: {measured}")]
        if paper is not None and with_paper:
            columns.append((paper, PAPER, f"paper: {paper.removeprefix('paper ')}"))
        for axis, (column, colour, title) in zip(axes, columns, strict=True):
            spread = table.get(f"{column} sd", pd.Series(np.nan, index=table.index)).fillna(0.0)
            axis.errorbar(table[column], places, xerr=spread, fmt="o", color=colour, capsize=3, markersize=5)
            axis.set_title(title, loc="left", fontsize=9)
            axis.grid(alpha=0.25)
            axis.margins(x=0.12)
            axis.xaxis.set_major_locator(MaxNLocator(5))  # long labels of near values would touch
        axes[0].set_yticks(places, table["row"])
        axes[0].set_ylim(-0.7, len(table) - 0.3)
        return figure


def nfe_figure(curves: pd.DataFrame, metric: str) -> Figure:
    """Draw distance by NFE, one line per sampler, with bars of one standard deviation over seeds.

    Args:
        curves: frame of `pforce.results.curves.nfe_curves`.
    """
    with _style():
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axis = figure.subplots()
        names = list(curves["name"].unique())
        for number, name in enumerate(names):
            line = curves[curves["name"] == name].sort_values("nfe")
            shift = 1.012 ** (number - len(names) / 2)  # so that bars stand beside each other
            axis.errorbar(
                line["nfe"] * shift, line["mean"], yerr=line["sd"].fillna(0.0), marker=MARKERS[number % len(MARKERS)],
                markersize=4, linewidth=1.3, capsize=2.5, color=CYCLE[number % len(CYCLE)], label=name,
            )  # fmt: skip
        axis.set_xscale("log")
        ticks = sorted(curves["nfe"].unique())
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.set(xlabel="NFE per image", ylabel=metric)
        axis.grid(alpha=0.25)
        figure.legend(loc="outside right center", frameon=False)
        return figure


def difficulty_seeds_figure(curve: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """Draw R by t: mean over seeds, its 95 % interval as a band, and the paper's points as open markers.

    Args:
        curve: frame of `pforce.results.curves.difficulty_curve`.
        paper: frame with the columns t, pearson_r.
    """
    with _style():
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axis = figure.subplots()
        axis.fill_between(curve["t"], curve["low"], curve["high"], color=OURS, alpha=BAND, linewidth=0)
        axis.plot(
            curve["t"], curve["mean"], color=OURS, marker="o", markersize=3, label=f"here, n = {curve['n'].max()}"
        )
        if paper is not None:
            axis.plot(
                paper["t"], paper["pearson_r"], linestyle="", marker="s", markersize=6, markerfacecolor="none",
                color=PAPER, label="paper",
            )  # fmt: skip
        axis.set(xlim=(0, 1), xlabel="t", ylabel="R of σ with the squared error")
        axis.set_ylim(min(0.0, float(curve["mean"].min()) - 0.05), 1)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
        return figure


def context_seeds_figure(curve: pd.DataFrame, paper: pd.DataFrame | None = None) -> Figure:
    """Draw the change of the loss on uncertain patches in percent by context time, one panel per t.

    Bands are 95 % intervals of the mean over seeds. The paper's losses are of another model on latents, so only their
    change is drawn beside ours.

    Args:
        curve: frame of `pforce.results.curves.context_curve`.
        paper: frame with the columns t, context_t, uncertain_region_val_loss.
    """
    times = sorted(curve["t"].unique())
    with _style():
        figure = Figure(figsize=(2.9 * len(times) + 0.4, 3.3), layout="constrained")
        axes = figure.subplots(1, len(times), squeeze=False, sharey=paper is None)[0]
        for axis, t in zip(axes, times, strict=True):
            here = curve[curve["t"] == t]
            axis.fill_between(
                here["time"], here["change_low"], here["change_high"], color=OURS, alpha=BAND, linewidth=0
            )
            axis.plot(here["time"], here["change"], color=OURS, label=f"here, n = {here['n'].max()}")
            axis.axhline(0, color=BASELINE, linestyle="--", linewidth=1, label="no context")
            lowest = here.loc[here["change"].idxmin()]
            axis.plot(lowest["time"], lowest["change"], marker="o", color=OURS, markersize=5)
            axis.annotate(
                f"t′ = {lowest['time']:.2f}", (lowest["time"], lowest["change"]), xytext=(0, -7),
                textcoords="offset points", ha="center", va="top", fontsize=8, color=OURS,
            )  # fmt: skip
            theirs = paper[np.isclose(paper["t"], t)].sort_values("context_t") if paper is not None else pd.DataFrame()
            if len(theirs):
                losses = theirs["uncertain_region_val_loss"].to_numpy()
                axis.plot(
                    theirs["context_t"], 100 * (losses / losses[0] - 1), color=PAPER, marker="s", markersize=5,
                    markerfacecolor="none", linestyle=":", linewidth=1, label="paper (three points read off)",
                )  # fmt: skip
            axis.set_title(f"t = {t:g}", loc="left")
            axis.set(xlim=(0, 1.02), xlabel="context time t′")
            axis.margins(y=0.15)
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("change of the loss in %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        return figure


def log_sigma_figure(quantiles: pd.DataFrame) -> Figure:
    """Draw the distribution of predicted log-σ on uncertain patches without and with context from its quantiles, one
    panel per t.

    Args:
        quantiles: frame of `pforce.results.curves.log_sigma_quantiles`.
    """
    times = sorted(quantiles["t"].unique())
    with _style():
        figure = Figure(figsize=(2.9 * len(times) + 0.4, 3.2), layout="constrained")
        axes = figure.subplots(1, len(times), squeeze=False, sharey=True)[0]
        for axis, t in zip(axes, times, strict=True):
            for kind, colour, label in (("alone", BASELINE, "no context"), ("context", OURS, "context at 2t")):
                line = quantiles[(quantiles["t"] == t) & (quantiles["kind"] == kind)]
                axis.plot(
                    line["mean"], 100 * line["quantile"], color=colour, marker="o", markersize=3, linewidth=1.4,
                    label=label,
                )  # fmt: skip
            axis.set_title(f"t = {t:g}", loc="left")
            axis.set_xlabel("predicted log σ")
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("uncertain patches below, in %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return figure
