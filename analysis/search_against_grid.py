"""A search over LTG (m, s, sigma) and λ against a grid of as many cells: the best found by device-hours spent.

    python analysis/search_against_grid.py grid --storage FOLDER
    python analysis/search_against_grid.py tpe --storage FOLDER
    python analysis/search_against_grid.py report --storage FOLDER --out analysis/results

Each part trains 24 cells of the micro model on 12,800 images with one seed; the two know nothing of each other, as each
has a storage of its own below FOLDER. `confirm` trains the best of each, and the paper's setting, with further seeds,
since the best of many owes part of its number to chance. Interrupted, each part goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from pforce import results
from pforce.base.console import DONE, exit_on_errors, make_console
from pforce.base.files import write_bytes, write_json, write_text
from pforce.commands.command_line import parse
from pforce.config import with_fields
from pforce.orchestration.axes import Axis, Zip
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.search_goal import SearchSettings
from pforce.orchestration.sweep import Sweep
from pforce.records.provenance import versions
from pforce.results.formats import to_markdown
from pforce.results.page import png
from pforce_experiments.openmoji32 import openmoji32_micro

FIELDS = ("timesteps.m", "timesteps.s", "timesteps.sigma", "flow.difficulty_weight")
SPACE = (
    "timesteps.m=-1..1.5",
    "timesteps.s=0.5..1.5",
    "timesteps.sigma=0.05..1",
    "flow.difficulty_weight=log:0.001..1",
)
GRID = ((-0.5, 0.2, 0.9), (0.7, 1.2), (0.2, 0.6), (0.01, 0.1))
TRIALS = 24
DISTANCE = "fd/openmoji"
HOURS = "cost/device_hours"


@dataclass(frozen=True)
class Arguments:
    """Compare a search with a grid of as many cells; see the file's docstring."""

    part: Annotated[Literal["grid", "tpe", "confirm", "report"], tyro.conf.Positional]
    storage: Path
    """Folder of the two storages."""
    out: Path = Path("analysis/results")
    images: int = 12_800
    """Images seen per cell."""
    generated: int = 500
    """Generated images per measurement."""
    trials: int = TRIALS
    confirm_seeds: int = 3
    """Further seeds of the two best, from 1."""


def base(a: Arguments):
    """The experiment of all cells."""
    return with_fields(openmoji32_micro(), {
        "training.images": a.images, "evaluation.images": a.generated, "evaluation.difficulty_timesteps": (0.6,),
        "evaluation.context_timesteps": (), "training.precision": "float32",
    })  # fmt: skip


def _options(a: Arguments, name: str) -> Options:
    return Options(storage=str(a.storage / name), executor="local", cpus_per_trial=1)


def grid(a: Arguments) -> int:
    """Run the grid."""
    axes = tuple(Axis(path, values) for path, values in zip(FIELDS, GRID, strict=True))
    return run_sweep(Sweep("grid", base(a), axes), _options(a, "grid"))


def tpe(a: Arguments) -> int:
    """Run the search."""
    sweep = Sweep("tpe", base(a), tuple(map(parse_axis, SPACE)), points=())
    return run_sweep(sweep, _options(a, "tpe"), search=SearchSettings("tpe", a.trials))


def cells_of(a: Arguments, name: str) -> pd.DataFrame:
    """The cells of a part, in the order in which they ended."""
    return results.runs(a.storage / name, sweep=name).sort_values("end_time").reset_index(drop=True)


def best_of(frame: pd.DataFrame) -> dict[str, float]:
    """Fields of the best cell."""
    row = frame.loc[frame[DISTANCE].idxmin()]
    return {path: float(row[path]) for path in FIELDS}


def confirm(a: Arguments) -> int:
    """Train the best of each and the paper's setting with further seeds."""
    experiment = base(a)
    own = {"timesteps.m": experiment.timesteps.m, "timesteps.s": experiment.timesteps.s,  # type: ignore[attr-defined]
           "timesteps.sigma": experiment.timesteps.sigma,  # type: ignore[attr-defined]
           "flow.difficulty_weight": experiment.flow.difficulty_weight}  # fmt: skip
    several = (best_of(cells_of(a, "grid")), best_of(cells_of(a, "tpe")), own)
    steps = tuple(dict.fromkeys(tuple(each[path] for path in FIELDS) for each in several))
    seeds = tuple(range(1, 1 + a.confirm_seeds))
    return run_sweep(Sweep("confirm", experiment, (Zip(FIELDS, steps),), seeds), _options(a, "confirm"))


def report(a: Arguments) -> int:
    """Write the table, the figure and the numbers."""
    lines, record, curves = [], {"images_seen": a.images, "generated": a.generated, **versions()}, {}
    for name in ("grid", "tpe"):
        frame = cells_of(a, name)
        hours, best = frame[HOURS].astype(float).cumsum(), frame[DISTANCE].astype(float).cummin()
        curves[name] = (hours, best)
        values = frame[DISTANCE].astype(float)
        best_fields = best_of(frame)
        lines.append({
            "": name, "cells": len(frame), "device-hours": hours.iloc[-1], "best": values.min(),
            "median": values.median(), **{path.rsplit(".")[-1]: value for path, value in best_fields.items()},
        })  # fmt: skip
        record[name] = frame[[*FIELDS, DISTANCE, "val/loss", HOURS, "run_name"]].to_dict("records")
    table = pd.DataFrame(lines)
    equal = min(curves["grid"][0].iloc[-1], curves["tpe"][0].iloc[-1])
    notes = [f"At {equal:.3f} device-hours: " + ", ".join(
        f"{name} {best[hours <= equal * (1 + 1e-9)].min():.2f}" for name, (hours, best) in curves.items()
    )]  # fmt: skip
    half = min(len(hours) for hours, _ in curves.values()) // 2
    notes.append(f"After {half} trainings: " + ", ".join(
        f"{name} {best.iloc[half - 1]:.2f}" for name, (_, best) in curves.items()
    ))  # fmt: skip
    notes.append("Device-hours are of the clock, so what else the machine did is in them; the two ran side by side.")
    if (a.storage / "confirm").exists():
        notes += _confirmed(cells_of(a, "confirm"), record)
    write_json(a.out / "search_against_grid.json", json.loads(json.dumps(record, default=float)))
    write_text(a.out / "search_against_grid.md", f"# TPE against a grid\n\n{__doc__}\n\n{to_markdown(table, notes)}\n")
    _draw(curves, a.out / "search_against_grid.png")
    console = make_console()
    console.print(to_markdown(table, notes), markup=False, soft_wrap=True)
    return DONE


def _confirmed(frame: pd.DataFrame, record: dict[str, object]) -> list[str]:
    """Sentences on the settings that further seeds have measured."""
    record["confirm"] = frame[[*FIELDS, "seed", DISTANCE, "val/loss"]].to_dict("records")
    notes = []
    for fields, group in frame.groupby(list(FIELDS), sort=False):
        values = group[DISTANCE].astype(float)
        told = ", ".join(f"{path.rsplit('.')[-1]} {float(value):g}" for path, value in zip(FIELDS, fields, strict=True))
        notes.append(f"Further seeds (n = {len(values)}): {told}: {values.mean():.2f} ± {values.std(ddof=1):.2f}")
    return notes


def _draw(curves: dict[str, tuple[pd.Series, pd.Series]], path: Path) -> None:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    for (name, (hours, best)), colour in zip(curves.items(), ("#555555", "#d55e00"), strict=True):
        axis.step(hours, best, where="post", label=name, color=colour)
    axis.set_xlabel("device-hours")
    axis.set_ylabel(f"best {DISTANCE} so far")
    top = max(float(np.quantile(best, 0.8)) for _, best in curves.values())
    low = min(float(best.min()) for _, best in curves.values())
    axis.set_ylim(low - 0.1 * (top - low), top + 0.3 * (top - low))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    write_bytes(path, png(figure), lasting=False)


def main() -> int:
    """Entry point."""
    a = parse(Arguments, description=__doc__)
    return {"grid": grid, "tpe": tpe, "confirm": confirm, "report": report}[a.part](a)


if __name__ == "__main__":
    exit_on_errors(main)
