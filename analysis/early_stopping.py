"""Successive halving against the grid: what it finds, and at what part of the grid's device-hours.

    python analysis/early_stopping.py --storage FOLDER --out analysis/results

Two axes: `optimizer.learning_rate` at 12,800 images, whose losses are known to differ, and LTG (m, sigma) at 96,000,
with one seed. The whole grid is trained once; successive halving (one in three goes on at a ninth and at a third of the
budget, by the validation loss) is run five times, each in a storage of its own with its rows in another order. The
model has two blocks of width 64, so that all of it takes minutes on a CPU. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pforce import results
from pforce.base.console import DONE, exit_on_errors
from pforce.base.files import write_json, write_text
from pforce.commands.command_line import parse
from pforce.config import Experiment, with_fields
from pforce.metrics.names import VALIDATION_LOSS, CostName
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.rungs import RungSettings
from pforce.orchestration.script import run_sweep
from pforce.orchestration.search_goal import SearchSettings
from pforce.orchestration.sweep import Sweep
from pforce.records.provenance import versions
from pforce.results.costs import run_costs
from pforce.results.formats import to_markdown
from pforce_experiments.openmoji32 import openmoji32_micro

SMALL = {
    "model.depth": 2, "model.width": 64, "model.heads": 2, "training.precision": "float32", "training.log_every": 50,
    "evaluation.images": 64, "evaluation.difficulty_timesteps": (), "sampler.num_function_evaluations": 4,
}  # fmt: skip
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2, 3e-2)
M, SIGMA = (0.0, 0.4, 0.7), (0.1, 0.3, 0.6)


@dataclass(frozen=True)
class Arguments:
    """Compare successive halving with a grid; see the file's docstring."""

    storage: Path
    """Folder of the storages, one per run."""
    out: Path = Path("analysis/results")
    runs: int = 5
    """Runs of successive halving, each with another order of rows."""
    rate_images: int = 12_800
    """Images seen per cell of the learning rates."""
    ltg_images: int = 96_000
    """Images seen per cell of LTG."""
    parts: tuple[Literal["learning_rate", "ltg"], ...] = ("learning_rate", "ltg")
    """Axes to compare."""


def parts(a: Arguments) -> dict[str, tuple[Experiment, tuple[Axis, ...]]]:
    """Name → experiment and axes."""
    base = openmoji32_micro()
    return {
        "learning_rate": (
            with_fields(base, {**SMALL, "training.images": a.rate_images}), (Axis("optimizer.learning_rate", RATES),)
        ),
        "ltg": (
            with_fields(base, {**SMALL, "training.images": a.ltg_images, "optimizer.learning_rate": 1e-3}),
            (Axis("timesteps.m", M), Axis("timesteps.sigma", SIGMA)),
        ),
    }  # fmt: skip


def shuffled(axes: tuple[Axis, ...], seed: int) -> tuple[Axis, ...]:
    """The axes with their values in another order."""
    order = random.Random(seed)
    return tuple(Axis(axis.path, tuple(order.sample(axis.values, len(axis.values)))) for axis in axes)


def carried_out(a: Arguments, name: str, folder: str, search: SearchSettings | None, seed: int | None) -> pd.DataFrame:
    """Run one sweep, and return its cells."""
    base, axes = parts(a)[name]
    axes = axes if seed is None else shuffled(axes, seed)
    sweep = Sweep(name, base, axes, points=None if search is None else ())
    options = Options(storage=str(a.storage / f"{name}-{folder}"), executor="local", cpus_per_trial=1)
    if run_sweep(sweep, options, search=search) != DONE:
        raise SystemExit(f"{name}-{folder} did not end well")
    return results.runs(a.storage / f"{name}-{folder}", sweep=name)


def spent(frame: pd.DataFrame) -> tuple[float, float]:
    """Device-hours, and images trained, each training counted once."""
    images = frame.groupby("training")[CostName.IMAGES_SEEN].max().sum()
    return float(run_costs(frame)["device_hours"].sum()), float(images)


def best_of(frame: pd.DataFrame, budget: int, paths: list[str]) -> tuple[dict[str, float], float]:
    """Fields and validation loss of the best whole cell."""
    whole = frame[frame[CostName.IMAGES_SEEN] == budget]
    row = whole.loc[whole[VALIDATION_LOSS].idxmin()]
    return {path: float(row[path]) for path in paths}, float(row[VALIDATION_LOSS])


def compared(a: Arguments, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per run, and sentences."""
    base, axes = parts(a)[name]
    budget, paths = base.training.images, [axis.path for axis in axes]
    early = RungSettings("halving")
    grid = carried_out(a, name, "grid", None, None)
    best, loss = best_of(grid, budget, paths)
    whole, trained = spent(grid)
    first = {"run": "grid", "cells to the end": len(grid), "device-hours": whole, "share": 1.0, "share trained": 1.0}
    rows: list[dict[str, Any]] = [{**first, "val loss": loss, **best}]
    for seed in range(a.runs):
        frame = carried_out(a, name, f"halving{seed}", SearchSettings("grid", 100, early=early), seed)
        found, loss = best_of(frame, budget, paths)
        hours, images = spent(frame)
        ended = int((frame[CostName.IMAGES_SEEN] == budget).sum())
        rows.append({"run": f"halving {seed}", "cells to the end": ended, "device-hours": hours, "share": hours / whole,
                     "share trained": images / trained, "val loss": loss, **found})  # fmt: skip
    same = sum(all(row[path] == best[path] for path in paths) for row in rows[1:])
    ordered = sorted(grid[VALIDATION_LOSS])
    shares, images = [row["share"] for row in rows[1:]], [row["share trained"] for row in rows[1:]]
    told = [
        f"{same} of {a.runs} runs found the grid's best, at {min(shares):.0%} to {max(shares):.0%} of its device-hours "
        f"and {min(images):.0%} to {max(images):.0%} of its images trained",
        f"The grid's losses: {ordered[0]:.4f} (best), {ordered[1]:.4f} (second), {ordered[-1]:.4f} (worst)",
    ]
    return rows, told


def main() -> int:
    """Run everything, and write table and numbers."""
    a = parse(Arguments, "early_stopping.py", description=__doc__)
    lines, record = ["# Successive halving against the grid", "", (__doc__ or "").split("\n", 1)[1].strip(), ""], {}
    for name in a.parts:
        rows, told = compared(a, name)
        record[name] = {"rows": rows, "told": told}
        lines += [
            f"## {name}, {parts(a)[name][0].training.images:,} images seen",
            "",
            to_markdown(pd.DataFrame(rows)),
            "",
        ]
        lines += [*(f"- {sentence}" for sentence in told), ""]
    lines += ["Shares are of the grid's. Device-hours are of the clock, with what else the machine did then."]
    write_json(a.out / "early_stopping.json", {**record, **versions()})
    write_text(a.out / "early_stopping.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    return DONE


if __name__ == "__main__":
    exit_on_errors(main)
