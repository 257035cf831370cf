"""`pforce sweep`: train and measure every cell of a grid over any fields of an experiment."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pforce.base.errors import ConfigError, require
from pforce.catalog import experiment
from pforce.commands.command_line import parse
from pforce.config import check_path, with_fields
from pforce.orchestration.grammar import join_conditions, parse_axis, parse_zip, read_rows, with_whole_numbers
from pforce.orchestration.options import Options
from pforce.orchestration.script import Comparison, parse_settings, run_sweep
from pforce.orchestration.sweep import Axis, Sweep, Zip, check_settings

EXAMPLES = """Examples:
  pforce sweep openmoji32_micro --axis timesteps.sigma=0.1,0.3 --axis flow.difficulty_weight=0.01,0.1 --seeds 3
  pforce sweep openmoji32_micro --axis timesteps=ltg:0.7,1,0.2,srm:1,parallel_uniform
  pforce sweep openmoji32_micro --zip timesteps.m,timesteps.s=0:1,0.7:0.5
  pforce sweep openmoji32_micro --axis sampler=euler,dual_loop --axis sampler.quantile=0.3,0.5 --when sampler=dual_loop
  pforce sweep openmoji32_micro --axis flow.difficulty_weight=log:0.001..1 --grid 4"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train and measure every cell of a grid over any fields of an experiment; write a table and MLflow runs.

    What an earlier command has trained, drawn or measured is not done again: the same command continues a stopped
    sweep, and the same name with more values, seeds or rows adds cells.
    """

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """Experiment whose fields vary: a name (`pforce experiments`), or FILE.py:FUNCTION."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Values of a field, FIELD=VALUE,VALUE,…; repeatable, each combination is a cell. A value may be a number, a word,
    true, false, none, a list in parentheses, or for timesteps and sampler NAME:SETTINGS (ltg:0.7,1,0.2 or
    ltg:sigma=0.2). FIELD=0..1, FIELD=log:0.001..1 and FIELD=int:4..24 are ranges, for --grid. --when FIELD=VALUE right
    after an axis: it varies only where that axis before it has that value."""
    zip: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Fields that change together, FIELD,FIELD=VALUE:VALUE,VALUE:VALUE,…; repeatable."""
    rows: Path | None = None
    """File of rows (.csv, .yaml, .json): columns are fields, the column `row` names the rows; `-` leaves a field as the
    experiment has it. Axes multiply the rows."""
    grid: int | None = None
    """Number of points of each range."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field's value in all cells, FIELD=VALUE such as training.images=32000; repeatable."""
    seeds: int = 1
    """Number of training seeds of every cell: 0, 1, … Fewer than 3 give no error bars worth the name."""
    name: str | None = None
    """Name of the sweep, of its MLflow experiment and of its files. Default: the experiment's."""
    dry_run: bool = False
    """Print cells, fingerprints, which are done, and the time that the others would take; run nothing."""
    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "seeds", self.seeds, "≥ 1")
        require(self.grid is None or 2 <= self.grid <= 1000, "grid", self.grid, "2 to 1000 points")


def sweep_of(a: Arguments) -> Sweep:
    """The sweep as data. ConfigError where an axis, a zip, a row or a setting does not fit the experiment."""
    settings = parse_settings(a.set)
    base = with_fields(experiment(a.experiment), settings)
    axes = [parse_axis(text) for text in a.axis]
    for axis in axes:
        check_path(base, axis.path)
    axes = [with_whole_numbers(axis, base) for axis in axes]
    ranges = [axis for axis in axes if axis.range is not None]
    if a.grid is None and ranges:
        told = f"{ranges[0].path}={ranges[0].range}"
        raise ConfigError(f"--axis {told}: is a range; give its number of points (--grid N)")
    if a.grid is not None and not ranges:
        raise ConfigError(f"--grid {a.grid}: is the number of points of a range, and no axis is one (FIELD=0..1)")
    points: list[Axis] = [axis if a.grid is None else axis.with_points(a.grid) for axis in axes]
    rows = () if a.rows is None else read_rows(a.rows)
    several: tuple[Axis | Zip, ...] = (*points, *(parse_zip(text) for text in a.zip))
    if not several and not rows:
        raise ConfigError(f"pforce sweep {a.experiment}: nothing varies; give --axis, --zip or --rows (--help)")
    of_axes = [path for axis in several for path in axis.paths]
    check_settings(settings, dict.fromkeys([*of_axes, *(path for row in rows for path in row.changes)]))
    return Sweep(a.name or base.name, base, several, tuple(range(a.seeds)), rows)


def sweep(words: list[str]) -> int:
    """Train and measure every cell of a grid over any fields of an experiment; write a table and MLflow runs.

    `--when` belongs to the axis before it, so the order of words counts.
    """
    about = f"{inspect.cleandoc(Arguments.__doc__ or '')}\n\n{EXAMPLES}"
    arguments = parse(Arguments, "pforce sweep", join_conditions(words), description=about)
    return run_sweep(sweep_of(arguments), arguments.options, dry_run=arguments.dry_run, comparison=arguments.comparison)
