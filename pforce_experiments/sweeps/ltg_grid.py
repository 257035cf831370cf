"""The LTG grid: effect of m, s and sigma of the timestep sampler on the images.

Without arguments: OpenMoji at 32², the micro model, and a small grid that shows the whole path in minutes, too short to
rank anything. `--preset full` is a comparison that can rank: 96,000 images per cell and 3 seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from pforce.base.console import exit_on_errors
from pforce.catalog import experiment
from pforce.commands.command_line import parse
from pforce.config import Experiment, with_fields
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import QUICK, Comparison, parse_settings, run_sweep
from pforce.orchestration.sweep import Axis, Sweep, check_settings


@dataclass(frozen=True)
class Arguments:
    """Train and measure every cell of a grid over LTG (m, s, sigma); write a table and MLflow runs."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[EXPERIMENT]")] = "openmoji32_micro"
    """Experiment whose fields the grid varies: a name (`pforce experiments`), or FILE.py:FUNCTION."""
    m: tuple[float, ...] = (0.0, 0.7)
    """Means of the logit of the largest timestep."""
    s: tuple[float, ...] = (1.0,)
    """Standard deviations of that logit."""
    sigma: tuple[float, ...] = (0.2, 0.6)
    """Spreads of the patches below the largest timestep."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further axis, FIELD=VALUE,VALUE,… such as flow.difficulty_weight=0.001,0.01; repeatable."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field's value in all cells, FIELD=VALUE such as training.images=32000; repeatable."""
    seeds: tuple[int, ...] | None = None
    """Training seeds of every cell. Default: 0; with --preset full: 0 1 2."""
    preset: Literal["quick", "full"] = "quick"
    """quick: takes minutes, too short to rank anything. full: the experiment's own budget and 3 seeds. --set overrides
    both."""
    name: str = "ltg_grid"
    """Name of the sweep, of its MLflow experiment and of its files."""
    dry_run: bool = False
    """Print cells, fingerprints, which are done, and the time that the others would take; run nothing."""
    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


def sweep(arguments: Arguments) -> Sweep:
    """The sweep as data."""
    base: Experiment = experiment(arguments.experiment)
    quick = arguments.preset == "quick"
    settings = parse_settings(arguments.set)
    base = with_fields(base, {**(QUICK if quick else {}), **settings})
    axes = (
        Axis("timesteps.m", arguments.m),
        Axis("timesteps.s", arguments.s),
        Axis("timesteps.sigma", arguments.sigma),
        *(parse_axis(text) for text in arguments.axis),
    )
    check_settings(settings, [path for axis in axes for path in axis.paths])
    seeds = arguments.seeds or ((0,) if quick else (0, 1, 2))
    return Sweep(arguments.name, base, axes, seeds, longer="--preset full" if quick else "")


def main() -> int:
    """Entry point."""
    arguments = parse(Arguments, description=__doc__)
    return run_sweep(sweep(arguments), arguments.options, dry_run=arguments.dry_run, comparison=arguments.comparison)


if __name__ == "__main__":
    exit_on_errors(main)
