"""Options that all sweeps of trainings share: what varies, how a search chooses, and how it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tyro
from rich.console import Console

from pforce.base.errors import ConfigError, require
from pforce.catalog import experiment
from pforce.commands.command_line import parse
from pforce.config import Experiment, check_path, with_fields
from pforce.metrics.names import VALIDATION_LOSS
from pforce.orchestration.axes import Axis, Zip, check_settings
from pforce.orchestration.grammar import join_conditions, parse_axis, parse_zip, read_rows, with_whole_numbers
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan
from pforce.orchestration.rungs import Pruner, RungSettings
from pforce.orchestration.script import QUICK, parse_settings, run_sweep
from pforce.orchestration.search_goal import SearchSettings
from pforce.orchestration.study import Method
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import Comparison
from pforce.training import TrainingConfig

T = TypeVar("T")
SMALLEST_FACTOR = 1.1
"""Smallest factor of --measure-every."""
FULL_SEEDS = 3
"""Seeds of the preset full."""


SMALLEST_SHARE = 64
"""A training is measured from this part of its budget on, where --measure-every gives a factor."""


def snapshots_of(texts: Sequence[str], training: TrainingConfig) -> tuple[int, ...]:
    """Images seen of the snapshots that --measure-every asks for. ConfigError for another text."""
    batch, most = training.batch, training.images
    if len(texts) == 1 and (match := re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)x", texts[0])):
        factor, images, found = float(match[1]), float(most), []
        require(factor >= SMALLEST_FACTOR, "measure_every", texts[0], f"at least {SMALLEST_FACTOR}x, such as 2x")
        while (images := images / factor) >= max(batch, most / SMALLEST_SHARE):
            found.append(max(1, round(images / batch)) * batch)
        return tuple(sorted({each for each in found if each < most}))
    told = f"2x, or images seen: multiples of the batch {batch} below {most:,}"
    fits = all(re.fullmatch(r"\d{1,15}", text) for text in texts)
    require(fits, "measure_every", " ".join(texts), told)
    chosen = sorted({int(text) for text in texts})
    require(all(0 < each < most and each % batch == 0 for each in chosen), "measure_every", " ".join(texts), told)
    return tuple(chosen)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of a search, which chooses the points instead of taking all combinations."""

    search: Method | None = None
    """Search the axes through an Optuna study instead of taking all combinations: tpe (the usual choice), gp (few
    numbers, few trials), nsga2 (several objectives, many trials), random, or grid. The study stays in the storage
    (studies/NAME.journal, which optuna-dashboard opens); the same command goes on with it."""
    trials: int | None = None
    """Number of trials of the search, those of earlier calls included."""
    objective: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Recorded metric that the search makes better: METRIC, or min:METRIC or max:METRIC; repeatable, several give a
    front. fd is the Fréchet distance of the experiment's detector, which is the default; others are val/loss,
    difficulty/pearson_t0.60, cost/nfe, cost/device_hours."""
    require: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Limit that a point must keep to be the best, such as "cost/nfe <= 24"; repeatable."""
    early_stop: str | None = None
    """Stop trials early at rungs, in images seen: halving (successive halving), hyperband or median (Optuna's pruners).
    Without --search, all combinations are tried (--search grid). A stopped trial keeps its snapshot, and is resumed
    where a longer budget asks for it."""
    rungs: tuple[int, ...] = ()
    """Images seen at the rungs. Default: the budget divided by 9 and by 3 (by --reduction, and its square)."""
    rung_metric: str = VALIDATION_LOSS
    """Metric that decides at a rung; one of generated images is measured there as at the end."""
    reduction: int = 3
    """Number of trials at a rung of which one goes on (halving, hyperband)."""
    search_seed: int = 0
    """Seed of the search's suggestions."""
    study: str | None = None
    """Address of a database that holds the study, for a storage in a bucket or many drivers: postgresql://HOST/NAME."""

    def __post_init__(self) -> None:
        if self.early_stop is not None and self.search is None:
            object.__setattr__(self, "search", "grid")

    def settings(self, grid: int | None) -> SearchSettings | None:
        """The search, or None. ConfigError where it has no length, or where its options are given without it."""
        early = None
        if self.early_stop is not None:
            pruner = cast(Pruner, self.early_stop)  # which the settings check
            early = RungSettings(pruner, self.rungs, self.rung_metric, self.reduction)
        else:
            require(not self.rungs, "rungs", self.rungs, "given with --early-stop, such as --early-stop halving")
        if self.search is None:
            given = {"trials": self.trials, "objective": self.objective, "require": self.require, "study": self.study}
            for name, value in given.items():
                require(value in (None, ()), name, value, "given with --search, such as --search tpe")
            return None
        if self.trials is None and self.search != "grid":
            raise ConfigError(f"--search {self.search}: needs its number of trials (--trials N)")
        return SearchSettings(
            self.search, self.trials or 100_000, self.objective, self.require, self.search_seed, self.study, grid, early
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of every sweep of trainings."""

    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Values of a field, FIELD=VALUE,VALUE,…; repeatable, each combination is a cell. A value may be a number, a word,
    true, false, none, a list in parentheses, or for timesteps and sampler NAME:SETTINGS (ltg:0.7,1,0.2 or
    ltg:sigma=0.2). FIELD=0..1, FIELD=log:0.001..1 and FIELD=int:4..24 are ranges, for --search or --grid. Right after
    an axis, --when FIELD=VALUE lets it vary only where FIELD, an earlier axis, has that value."""
    zip: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Fields that change together, FIELD,FIELD=VALUE:VALUE,VALUE:VALUE,…; repeatable."""
    grid: int | None = None
    """Number of points of each range."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field's value in all cells, FIELD=VALUE such as training.images=32000; repeatable."""
    measure_every: tuple[str, ...] = ()
    """Measure each training along the way, too: 2x at a half, a quarter, … of its images (to a 64th), or at images
    seen, such as 3200 6400. Other workers measure while it trains; where there are none, it is measured in between.
    The table gets a row for each, and a figure of quality against images seen and device-hours."""
    name: str | None = None
    """Name of the sweep, of its MLflow experiment and of its files; by it more values, seeds or trials are added.
    Default: the experiment's or the script's."""
    priority: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Rows that run before all others: their axes, such as m=0.7,sigma=0.6, or their number from 1; repeatable."""
    add: bool = False
    """Only write the cells down: the sweep's driver that runs now takes them up."""
    dry_run: bool = False
    """Print cells, fingerprints, which are done, and the time that the others would take; run nothing."""
    searching: Annotated[SearchOptions, tyro.conf.arg(name="")] = field(default_factory=SearchOptions)
    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)

    def __post_init__(self) -> None:
        require(self.grid is None or 2 <= self.grid <= 1000, "grid", self.grid, "2 to 1000 points")
        if self.searching.search:
            chosen = {
                "priority": self.priority,
                "baseline": self.comparison.baseline,
                "compare": self.comparison.compare,
                "planned_seeds": self.comparison.planned_seeds,
            }
            for name, value in chosen.items():
                require(not value, name, value, "left out with --search: its rows are not known before, and are ranked")
            require(not self.add, "add", self.add, "False with --search, whose driver looks for trials itself")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that --set gives."""
        return parse_settings(self.set)

    def with_snapshots(self, base: Experiment) -> Experiment:
        """The experiment with snapshots where --measure-every asks for them. ConfigError for another text, or where the
        experiment has snapshots of its own."""
        if not self.measure_every:
            return base
        training = base.training
        own = f"left out where training.snapshots is set ({training.snapshots})"
        require(not training.snapshots, "measure_every", self.measure_every, own)
        return with_fields(base, {"training.snapshots": snapshots_of(self.measure_every, training)})

    def axes_of(self, base: Experiment, own: Sequence[Axis] = ()) -> tuple[Axis | Zip, ...]:
        """All axes, with points for ranges unless a search draws from them. ConfigError where one does not fit.

        Args:
            own: axes of a script, which come first.
        """
        axes = [parse_axis(text) for text in self.axis]
        for axis in axes:
            check_path(base, axis.path)
        axes = [with_whole_numbers(axis, base) for axis in axes]
        ranges = [axis for axis in axes if axis.range is not None]
        if self.grid is None and ranges and self.searching.search is None:
            told = f"{ranges[0].path}={ranges[0].range}"
            raise ConfigError(
                f"--axis {told}: is a range; give --search tpe --trials N, or its number of points (--grid N)"
            )
        if self.grid is not None and not ranges:
            raise ConfigError(
                f"--grid {self.grid}: is the number of points of a range, and no axis is one (FIELD=0..1)"
            )
        points = [axis if self.grid is None or self.searching.search else axis.with_points(self.grid) for axis in axes]
        return (*own, *points, *(parse_zip(text) for text in self.zip))

    def run(self, sweep: Sweep, report: Callable[[Plan, Console], None] | None = None) -> int:
        """Run a sweep with these options. Returns the exit code."""
        return run_sweep(
            sweep, self.options, dry_run=self.dry_run, report=report, comparison=self.comparison,
            priority=self.priority, add=self.add, search=self.searching.settings(self.grid),
        )  # fmt: skip


def parse_sweep(
    target: Callable[..., T], name: str | None = None, words: Sequence[str] | None = None, **options: Any
) -> T:  # fmt: skip
    """Parse a command line as `command_line.parse` does, with each --when as the condition of the axis before it."""
    return parse(target, name, join_conditions(list(sys.argv[1:] if words is None else words)), **options)


Seeds = Annotated[int, tyro.conf.arg(aliases=("--seeds-per-trial",))]


@dataclass(frozen=True, kw_only=True)
class SweepArguments(SweepOptions):
    """Train and measure cells over any fields of an experiment, as a grid or a search; write a table and MLflow runs.

    What an earlier command has trained, drawn or measured is not done again: the same command continues a stopped
    sweep, and the same name with more values, seeds, rows or trials adds to it.
    """

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """Experiment whose fields vary: a name (`pforce experiments`), or FILE.py:FUNCTION."""
    rows: Path | None = None
    """File of rows (.csv, .yaml, .json): columns are fields, the column `row` names the rows; `-` leaves a field as the
    experiment has it. Axes multiply the rows."""
    seeds: Seeds = 1
    """Number of training seeds of every cell or trial: 0, 1, … Fewer than 3 give no error bars worth the name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds >= 1, "seeds", self.seeds, "≥ 1")

    def sweep(self) -> Sweep:
        """The sweep as data. ConfigError where an axis, a zip, a row or a setting does not fit the experiment."""
        base = self.with_snapshots(with_fields(experiment(self.experiment), self.settings))
        axes = self.axes_of(base)
        rows = () if self.rows is None else read_rows(self.rows)
        if not axes and not rows:
            raise ConfigError(f"pforce sweep {self.experiment}: nothing varies; give --axis, --zip or --rows (--help)")
        varied = [*(path for axis in axes for path in axis.paths), *(path for row in rows for path in row.changes)]
        check_settings(self.settings, dict.fromkeys(varied))
        points = () if self.searching.search else None
        return Sweep(self.name or base.name, base, axes, tuple(range(self.seeds)), rows, points=points)


@dataclass(frozen=True, kw_only=True)
class PresetArguments(SweepOptions):
    """Options of a sweep that has axes of its own and two lengths."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[EXPERIMENT]")] = "openmoji32_micro"
    """Experiment whose fields vary: a name (`pforce experiments`), or FILE.py:FUNCTION."""
    seeds: Annotated[int | None, tyro.conf.arg(aliases=("--seeds-per-trial",))] = None
    """Number of training seeds of every cell: 0, 1, … Default: 1; with --preset full: 3."""
    preset: Literal["quick", "full"] = "quick"
    """quick: takes minutes, too short to rank anything. full: the experiment's own budget and 3 seeds. --set overrides
    both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds is None or self.seeds >= 1, "seeds", self.seeds, "≥ 1")

    @property
    def base(self) -> Experiment:
        """The experiment with the preset's settings and those of --set."""
        quick = QUICK if self.preset == "quick" else {}
        return self.with_snapshots(with_fields(experiment(self.experiment), {**quick, **self.settings}))

    def sweep_of(self, name: str, own: Sequence[Axis]) -> Sweep:
        """The sweep as data.

        Args:
            name: default name; the full preset's is NAME_full, as it has other settings.
            own: the sweep's own axes.
        """
        quick, base = self.preset == "quick", self.base
        axes = self.axes_of(base, own)
        check_settings(self.settings, [path for axis in axes for path in axis.paths])
        seeds = self.seeds or (1 if quick else FULL_SEEDS)
        return Sweep(
            self.name or (name if quick else f"{name}_full"), base, axes, tuple(range(seeds)),
            longer="--preset full" if quick else "", points=() if self.searching.search else None,
        )  # fmt: skip
