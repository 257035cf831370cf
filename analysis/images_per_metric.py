"""How many images and seeds each metric needs to tell LTG from the truncated Gaussian without LTG.

    python analysis/images_per_metric.py train --storage FOLDER
    python analysis/images_per_metric.py measure --storage FOLDER
    python analysis/images_per_metric.py figure

`train` runs the two rows of the paper's table of timestep schedules as a sweep of the micro model; each model draws its
images once. Interrupted, it goes on where it was. `measure` takes the images in blocks of n, as evaluations of n images
would draw them, measures each block with every metric, and writes the values as JSON. `figure` makes of them the
figure and the table.

All models draw from the same noise and classes, so a block is the same block in all of them: what a t-test over seeds
sees is the spread over seeds within one block. The difference and this spread, both averaged over blocks, give the
number of seeds per row with which Welch's t-test at 5 % finds the difference in 80 % of cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import special

from pforce.base.console import DONE, exit_on_errors, make_console
from pforce.base.files import read_whole, write_bytes, write_json, write_text
from pforce.commands.command_line import parse
from pforce.config import with_fields
from pforce.metrics.distances import ImageMetric, distances
from pforce.metrics.features import FeatureSet, collect
from pforce.metrics.names import VALIDATION_LOSS, MetricName
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import ROW, NamedRow, Sweep, Work
from pforce.records.provenance import made_on
from pforce.records.row import row_of, tensors_of
from pforce.results.page import png
from pforce.results.statistics import LEVEL, POWER, holm
from pforce.trial.draw import to_reading
from pforce.trial.readers import store_of
from pforce.trial.reference import REFERENCES, HeldOut, reference_for
from pforce.trial.subject import cycle_of
from pforce_experiments.openmoji32 import openmoji32_micro
from pforce_experiments.paper import SCHEDULES

Array = NDArray[np.float64]
ROWS = ("LTG", "truncated Gaussian")
"""Rows of the paper's table of timestep schedules."""
METRICS: tuple[ImageMetric, ...] = (
    "frechet", "kernel", "sliced", "precision_recall", "density_coverage", "class_accuracy", "class_kernel",
)  # fmt: skip
SHOWN = {
    "fd": "Fréchet distance", "kd": "kernel distance", "swd": "sliced Wasserstein distance", "precision": "precision",
    "recall": "recall", "density": "density", "coverage": "coverage", "class_accuracy": "class accuracy",
    "class_kd": "kernel distance by class", VALIDATION_LOSS: "validation loss (no images)",
}  # fmt: skip
"""Kind of a metric → what the figure calls it."""
SIZES = (50, 100, 200, 500, 1000, 2000, 4000)
"""Images per evaluation."""
MOST_BLOCKS = 10
"""Most blocks of one size."""
MOST_SEEDS = 50
"""Most seeds per row that are counted."""
RESAMPLES = 1000
NODES, NODES_OF_TWO = 8, 64
"""Nodes of an integral over a sample variance, and over that of two seeds, which is often near 0: powers are within
0.006."""
RANGE = (0.1, 0.9)
"""Quantiles of the resamples that are shown."""
OUT = "images_per_metric"


@dataclass(frozen=True)
class Arguments:
    """Measure how well each metric tells two rows apart; see the file's docstring."""

    part: Annotated[Literal["train", "measure", "figure"], tyro.conf.Positional]
    storage: Path = Path("runs/images_per_metric")
    """Folder of the storage of trainings and drawings."""
    out: Path = Path("analysis/results")
    images: int = 12_800
    """Images seen per training."""
    generated: int = 1_000
    """Images drawn per model."""
    seeds: int = 5
    """Seeds of each row, from 0."""


# --- training -------------------------------------------------------------------------------------------------------


def sweep_of(a: Arguments) -> Sweep:
    """The sweep of both rows."""
    base = with_fields(openmoji32_micro(), {
        "training.images": a.images, "evaluation.images": a.generated, "evaluation.difficulty_timesteps": (),
        "evaluation.context_timesteps": (), "training.precision": "float32",
    })  # fmt: skip
    rows = tuple(NamedRow(row.name, row.changes) for row in SCHEDULES if row.name in ROWS)
    return Sweep(OUT, base, (), tuple(range(a.seeds)), rows, known_by="name")


def options_of(a: Arguments) -> Options:
    """Options of the sweep: one training after the other, in this process."""
    return Options(storage=str(a.storage), executor="local", cpus_per_trial=1)


def train(a: Arguments) -> int:
    """Train the models and draw their images."""
    return run_sweep(sweep_of(a), options_of(a))


# --- measuring ------------------------------------------------------------------------------------------------------


def features_of(item: Work, planned: Plan, labels: torch.Tensor) -> FeatureSet | None:
    """The kept features of a cell's images, with their classes; None where the cell is not finished."""
    known = tensors_of(item.parts, planned.ledger)
    if known is None or row_of(item.parts, planned.ledger) is None:
        return None
    detector, images = item.experiment.evaluation.load_detector(), item.experiment.evaluation.images
    kept = store_of(planned.ledger, item.parts.request.drawing(known[0]).digest, detector)[0].load(images)
    found = collect(detector, (to_reading(kept[first]) for first in sorted(kept))).of_classes(labels, detector)
    return found.cut(images)


def blocks_of(images: int, size: int) -> list[int]:
    """First images of the blocks of a size, as many as there are whole ones, at most MOST_BLOCKS."""
    return [size * number for number in range(min(MOST_BLOCKS, images // size))]


def measure(a: Arguments) -> int:
    """Measure all blocks of all models, and write the values."""
    console = make_console()
    planned = plan(sweep_of(a), options_of(a), console)
    evaluation = planned.sweep.base.evaluation
    labels = cycle_of(evaluation, HeldOut(planned.data), planned.sweep.base.model.classes)
    reference = reference_for(
        evaluation, planned.data, evaluation.load_detector(), planned.inputs,
        cache=planned.ledger.storage.root / REFERENCES, device=torch.device("cpu"),
    )  # fmt: skip
    assert reference.features is not None
    drawn = {
        (dict(item.cells[0].values)[ROW], item.experiment.seed): (item, found)
        for item in planned.work
        if (found := features_of(item, planned, labels)) is not None
    }
    seeds = [seed for seed in range(a.seeds) if all((row, seed) in drawn for row in ROWS)]
    values: dict[str, dict[str, Any]] = {kind: {} for kind in SHOWN}
    for size in (each for each in SIZES if each <= a.generated):
        for row in ROWS:
            for seed in seeds:
                _, found = drawn[row, seed]
                blocks = [distances(found.cut(first + size, first), reference, METRICS).metrics
                          for first in blocks_of(len(found), size)]  # fmt: skip
                for kind, of in values.items():
                    name = str(MetricName(kind, reference.detector)) if kind != VALIDATION_LOSS else ""
                    if all(name in block for block in blocks):
                        several = of.setdefault(str(size), {each: [] for each in ROWS})[row]
                        several.append([float(f"{block[name]:.6g}") for block in blocks])
            console.print(f"{size:,} images per evaluation: {row}")
    for row in ROWS:
        losses = [row_of(drawn[row, seed][0].parts, planned.ledger).metrics[VALIDATION_LOSS]  # type: ignore[union-attr]
                  for seed in seeds]  # fmt: skip
        values[VALIDATION_LOSS].setdefault("0", {})[row] = [[float(f"{loss:.6g}")] for loss in losses]
    made = made_on(torch.device("cpu"))
    kept = ("device", "host_type", "precision", "threads", "version.torch", "commit")
    write_json(a.out / f"{OUT}.json", {
        "images_seen": a.images, "generated": a.generated, "seeds": seeds, "detector": reference.detector,
        "reference_images": len(reference.features), "nfe": planned.sweep.base.sampler.num_function_evaluations,
        **{name: made[name] for name in kept if name in made}, "values": values,
    })  # fmt: skip
    return DONE


# --- what the values say --------------------------------------------------------------------------------------------


@cache
def _variance_nodes(n: int) -> tuple[Array, Array]:
    """Nodes and weights of an integral over the sample variance of n values of variance 1 (Gauss and Laguerre)."""
    nodes, weights = special.roots_genlaguerre(NODES_OF_TWO if n == 2 else NODES, (n - 1) / 2 - 1)
    return 2 * nodes / (n - 1), weights / weights.sum()


def power(difference: Array, variances: tuple[Array, Array], n: int) -> Array:
    """Share of Welch's t-tests at 5 % that find a difference of means with n seeds per row.

    An integral over both sample variances, which the test's degrees of freedom depend on: with as few seeds, a
    noncentral t with those of the true variances says up to 0.03 too much.

    Args:
        difference, variances: any shape; the variances are of the two rows, over seeds.
    """
    nodes, weights = _variance_nodes(n)
    a, b = variances[0][..., None, None] * nodes[:, None], variances[1][..., None, None] * nodes
    bound = special.stdtrit((n - 1) * (a + b) ** 2 / (a**2 + b**2), 1 - LEVEL / 2) * np.sqrt(a + b)
    deviation = np.sqrt(variances[0] + variances[1])[..., None, None]
    shift = math.sqrt(n) * difference[..., None, None]
    found = special.ndtr((shift - bound) / deviation) + special.ndtr((-shift - bound) / deviation)
    return np.asarray(((found * weights).sum(axis=-1) * weights).sum(axis=-1))


def seeds_needed(difference: Array, variances: tuple[Array, Array]) -> Array:
    """Least number of seeds per row with which the test finds the difference in 80 % of cases; infinite where
    MOST_SEEDS are too few. Takes and returns (K,)."""
    low, high = np.ones(len(difference), int), np.full(len(difference), MOST_SEEDS + 1)
    while (high - low > 1).any():  # low seeds are too few, and high ones enough or too many to count
        middle = (low + high) // 2
        for n in np.unique(middle[high - low > 1]):
            at = np.flatnonzero((middle == n) & (high - low > 1))
            enough = power(difference[at], (variances[0][at], variances[1][at]), int(n)) >= POWER
            high[at[enough]], low[at[~enough]] = n, n
    return np.where(high > MOST_SEEDS, math.inf, high)


class Told(NamedTuple):
    """What one metric says at one number of images."""

    means: tuple[float, float]
    """Means of the rows."""
    over_images: float
    """Standard deviation of one model's value over blocks; NaN for one block."""
    over_seeds: float
    """Standard deviation over seeds of the value on the same images."""
    seeds: float
    """Seeds per row that are needed."""
    low: float
    high: float
    """10th and 90th percentile of the seeds needed, over resampled seeds."""
    opposite: float
    """Share of resamples in which the difference has the other sign."""
    p: float
    """p of Welch's t-test of the present seeds' means over blocks."""


def spread(values: Array) -> Array:
    """Variance over seeds within a block, averaged over blocks: (…, seeds, blocks) → (…)."""
    return np.asarray(values.var(axis=-2, ddof=1).mean(axis=-1))


def told(first: Array, second: Array, seed: int = 0) -> Told:
    """What the values (seeds, blocks) of two rows say. Seeds are resampled with all of their blocks."""
    n = len(first)
    generator = np.random.default_rng(seed)
    again = [row[generator.integers(0, n, (RESAMPLES, n))] for row in (first, second)]
    differences = again[0].mean(axis=(1, 2)) - again[1].mean(axis=(1, 2))
    # Resampled values vary by (n − 1) / n of the spread; where a resample is one seed only, its row has none.
    variances = [np.maximum(spread(row) * n / (n - 1), 1e-100) for row in again]
    needed = np.sort(seeds_needed(differences, (variances[0], variances[1])))
    low, high = (float(needed[int(share * (RESAMPLES - 1))]) for share in RANGE)
    difference = first.mean() - second.mean()
    of_images = np.concatenate([first, second])
    means = [row.mean(axis=1) for row in (first, second)]
    a, b = (each.var(ddof=1) / n for each in means)
    freedom = (n - 1) * (a + b) ** 2 / (a**2 + b**2)
    return Told(
        (float(first.mean()), float(second.mean())),
        float(np.sqrt(of_images.var(axis=1, ddof=1).mean())) if of_images.shape[1] > 1 else math.nan,
        float(np.sqrt((spread(first) + spread(second)) / 2)),
        float(seeds_needed(np.array([difference]), (spread(first)[None], spread(second)[None]))[0]), low, high,
        float(np.mean(np.sign(differences) != np.sign(difference))),
        float(2 * special.stdtr(freedom, -abs(difference) / np.sqrt(a + b))),
    )  # fmt: skip


def all_told(record: dict[str, Any]) -> dict[str, dict[int, Told]]:
    """Metric → images per evaluation → what it says."""
    return {
        kind: {int(size): told(*(np.array(of[row]) for row in ROWS)) for size, of in sizes.items()}
        for kind, sizes in record["values"].items() if sizes
    }  # fmt: skip


# --- figure and table -----------------------------------------------------------------------------------------------

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c510a", "#7b3294")
MARKERS = "osD^vPX*p"
BEYOND = 1.35 * MOST_SEEDS
"""Height at which the figure has what more than MOST_SEEDS would tell apart."""


def figure(a: Arguments) -> int:
    """Write the figure and the table."""
    record = json.loads(read_whole(a.out / f"{OUT}.json"))
    found = all_told(record)
    _draw(found, record, a.out / f"{OUT}.png")
    write_text(a.out / f"{OUT}.md", markdown(found, record))
    return DONE


def _draw(found: dict[str, dict[int, Told]], record: dict[str, Any], path: Path) -> None:
    drawing = Figure(figsize=(8.4, 4.8), layout="constrained")
    axis = drawing.subplots()
    styles = zip(COLOURS, MARKERS, range(-4, 5), strict=True)
    for kind, sizes in found.items():
        if kind == VALIDATION_LOSS:
            axis.axhline(min(sizes[0].seeds, BEYOND), color="#767676", linestyle="--", label=SHOWN[kind])
            continue
        colour, marker, place = next(styles)
        # Set apart a little: seeds are whole numbers, so that many lines would hide each other.
        x = [n * 1.015**place for n in sorted(sizes)]
        y = [min(sizes[n].seeds, BEYOND) * 1.012**place for n in sorted(sizes)]
        axis.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.6, label=SHOWN[kind])
    axis.axhspan(MOST_SEEDS, 1.8 * MOST_SEEDS, color="#eeeeee", zorder=0)
    sizes = sorted({n for each in found.values() for n in each if n})
    axis.set(xscale="log", yscale="log", ylim=(1.8, 1.8 * MOST_SEEDS))
    axis.set_xticks(sizes, [f"{n:,}" for n in sizes], minor=False)
    axis.set_xticks([], minor=True)
    ticks = [2, 3, 5, 10, 20, 50]
    axis.set_yticks([*ticks, BEYOND], [*map(str, ticks), f"> {MOST_SEEDS}"])
    axis.set_yticks([], minor=True)
    axis.set_xlabel("images per evaluation")
    axis.set_ylabel("seeds per row needed")
    axis.set_title(f"Telling LTG from the truncated Gaussian: {len(record['seeds'])} seeds each, "
                   f"{record['images_seen']:,} images seen", fontsize=10)  # fmt: skip
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    write_bytes(path, png(drawing), lasting=False)


def _seeds(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else f"> {MOST_SEEDS}"


def table(found: dict[str, dict[int, Told]]) -> list[str]:
    """The table's lines in Markdown."""
    lines = [
        "| metric | images | LTG | truncated Gaussian | difference | sd over images | sd over seeds | seeds needed "
        "| 10–90 % | other sign | p |",
        "|" + "---|" * 11,
    ]
    for kind, sizes in found.items():
        for n, each in sorted(sizes.items()):
            first, second = each.means
            range_ = f"{_seeds(each.low)} – {_seeds(each.high)}"
            lines.append(
                f"| {SHOWN[kind]} | {n:,} | {first:.4g} | {second:.4g} | {first - second:+.3g} | "
                f"{'–' if math.isnan(each.over_images) else f'{each.over_images:.2g}'} | {each.over_seeds:.2g} | "
                f"{_seeds(each.seeds)} | {range_} | {each.opposite:.0%} | {each.p:.2g} |".replace("-", "−")
            )
    return lines


def markdown(found: dict[str, dict[int, Told]], record: dict[str, Any]) -> str:
    """The results as a page."""
    p_values = [sizes[max(sizes)].p for sizes in found.values()]
    alone, together = (
        ", ".join(SHOWN[kind] for kind, p in zip(found, several, strict=True) if p <= LEVEL) or "none"
        for several in (p_values, holm(p_values))
    )
    command = "\n".join(
        f"    python analysis/images_per_metric.py {part} --storage FOLDER --images {record['images_seen']} "
        f"--generated {record['generated']} --seeds {len(record['seeds'])}" for part in ("train", "measure")
    )  # fmt: skip
    return "\n".join([
        "# How many images and seeds each metric needs", "",
        f"{command}\n    python analysis/images_per_metric.py figure", "",
        f"LTG against the truncated Gaussian without LTG, the rows of the paper's table of timestep schedules, on the "
        f"micro model at OpenMoji 32²: {record['images_seen']:,} images seen, {len(record['seeds'])} seeds per row, "
        f"{record['generated']:,} images per model (Euler, {record['nfe']} NFE), {record['reference_images']} "
        f"reference images, detector `{record['detector']}`. {record['host_type']}, one thread, torch "
        f"{record['version.torch']}, {record['precision']}. "
        "The models are far from trained (the experiment's 96,000 images), and this is one pair of rows.", "",
        f"![Seeds needed by images per evaluation]({OUT}.png)", "",
        f"**Different at 5 % on all images:** {together} (after Holm over {len(found)} metrics). Each taken alone: "
        f"{alone}.", "",
        "- *Seeds needed*: per row, for Welch's t-test at 5 % to find the measured difference in 80 % of cases, were "
        "the measured difference and spread the true ones.",
        f"- *10–90 %*: of the seeds needed, over {RESAMPLES:,} resamples of the seeds. Few seeds have few "
        "different resamples (three have ten), so the true range is wider.",
        "- *other sign*: share of these resamples in which the difference has the other sign.",
        "- *sd over images*: of one model's value, over disjoint blocks of that many images. *sd over seeds*: of "
        "models of one row on the same images. Noise and classes are the same in all models, so what a block has in "
        "common cancels, and the bias with the number of images, which both rows share, does too.",
        "- Lines of the figure are set apart a little where they would hide each other.",
        "- *kernel distance by class* covers the classes that have ten images in a block; with few images that is one.",
        "- p is of Welch's t-test of the present seeds, each with its mean over blocks.", "",
        *table(found), "",
    ])  # fmt: skip


def main() -> int:
    """Entry point."""
    a = parse(Arguments, description=__doc__)
    parts: dict[str, Callable[[Arguments], int]] = {"train": train, "measure": measure, "figure": figure}
    return parts[a.part](a)


if __name__ == "__main__":
    exit_on_errors(main)
