"""The λ sweep: effect of the weight of the difficulty head's likelihood on its uncertainty and on the images.

Question: does the predicted variance match the actual squared error, and does a larger λ = `flow.difficulty_weight`
improve this at the expense of the images? The paper has λ = 0.01. The likelihood does not train the velocity
(stop-gradient), but shapes the transformer that they share; and as Adam divides gradients by their size, the head's own
weights learn equally fast at any λ > 0.
Command: `python sweeps/lambda_sweep.py`; with `--preset full` a comparison that can rank.
Cost: one trial per λ and seed; `--dry-run` estimates their time on this machine.
Expected: with one seed and 25,600 images, R(0.6) 0.79, 0.81, 0.83 and calib(0.6) 0.71, 0.69, 0.58 at λ = 0.001, 0.01,
0.1, at the same validation loss (analysis/results/lambda_sweep.md); the full preset is not measured.

Results are a table with R(t) and calib(t), and `<name>_calibration.png`. calib(t) is the root mean square over deciles
of ln(observed / expected squared error); 0 is perfect. λ = 0 is allowed: the head is then not trained, its variance
stays 1 everywhere, R has no value, and calib is |ln of the mean squared error|, which is what an adaptive sampler would
get without the likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import tyro
from rich.console import Console

from pforce import results
from pforce.base.console import exit_on_errors
from pforce.base.errors import ConfigError
from pforce.catalog import experiment
from pforce.commands.command_line import parse
from pforce.config import with_fields
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan
from pforce.orchestration.script import (
    ALL_ROWS,
    QUICK,
    Comparison,
    parse_settings,
    print_report,
    push_files,
    run_sweep,
    sweep_frame,
    table_rows,
)
from pforce.orchestration.sweep import Axis, Sweep, check_settings
from pforce.results.figures import calibration_figure
from pforce.results.tables import CALIBRATION_COLUMNS, COST_COLUMNS, QUALITY_COLUMNS


@dataclass(frozen=True)
class Arguments:
    """Train and measure an experiment at several λ; write a table, a calibration figure and MLflow runs."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[EXPERIMENT]")] = "openmoji32_micro"
    """Experiment whose λ varies: a name or FILE.py:FUNCTION. Its model must have a difficulty head."""
    difficulty_weight: Annotated[tuple[float, ...], tyro.conf.arg(aliases=("--values",))] = (0.001, 0.01, 0.1)
    """λ, the weights of the difficulty head's negative log-likelihood; 0 leaves the head untrained."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further axis, FIELD=VALUE,VALUE,… such as timesteps.sigma=0.2,0.6; repeatable."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field's value in all cells, FIELD=VALUE such as training.images=32000; repeatable."""
    seeds: tuple[int, ...] | None = None
    """Training seeds of every cell. Default: 0; with --preset full: 0 1 2."""
    preset: Literal["quick", "full"] = "quick"
    """quick: takes minutes, too short to rank anything. full: the experiment's own budget and 3 seeds. --set overrides
    both."""
    name: str = "lambda_sweep"
    """Name of the sweep, of its MLflow experiment and of its files."""
    dry_run: bool = False
    """Print cells, fingerprints, which are done, and the time that the others would take; run nothing."""
    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


def sweep(arguments: Arguments) -> Sweep:
    """The sweep as data, with λ in rising order, as the figure's colours need."""
    quick = arguments.preset == "quick"
    settings = parse_settings(arguments.set)
    base = with_fields(experiment(arguments.experiment), {**(QUICK if quick else {}), **settings})
    if not base.model.difficulty_head:
        raise ConfigError(f"{base.name}: a model without a difficulty head has no λ; give an experiment of a PFT")
    weights = Axis("flow.difficulty_weight", tuple(sorted(arguments.difficulty_weight)))
    axes = (weights, *(parse_axis(text) for text in arguments.axis))
    check_settings(settings, [path for axis in axes for path in axis.paths])
    seeds = arguments.seeds or ((0,) if quick else (0, 1, 2))
    return Sweep(arguments.name, base, axes, seeds, longer="--preset full" if quick else "")


def report(planned: Plan, console: Console, comparison: Comparison = ALL_ROWS) -> None:
    """Print the usual table with calibration columns, and write the calibration figure."""
    print_report(planned, console, (*QUALITY_COLUMNS, *CALIBRATION_COLUMNS, *COST_COLUMNS), comparison)
    frame, rows = sweep_frame(planned), table_rows(planned)
    curves = results.calibration_curves(frame, rows)
    if len(curves):
        path = planned.options.root / f"{planned.sweep.name}_calibration.png"
        calibration_figure(curves, planned.sweep.headers, path, symbol="λ")
        push_files(planned.options.place, [path.name], console)
        console.print(f"Calibration: {path}", soft_wrap=True, highlight=False)
    # Cells that finished before calibration was measured have the same fingerprint, so they are not run again.
    drawn = {} if curves.empty else curves.groupby("row")["n"].first().to_dict()
    finished = results.cell_table(frame, rows)["n"]
    if older := sum(n - drawn.get(row, 0) for row, n in enumerate(finished)):
        console.print(
            f"note: {older} of {sum(finished)} finished trials have no calibration, as they were measured by an "
            "earlier version; another --storage measures them again",
            soft_wrap=True,
            highlight=False,
        )


def main() -> int:
    """Entry point."""
    arguments = parse(Arguments, description=__doc__)
    return run_sweep(
        sweep(arguments),
        arguments.options,
        dry_run=arguments.dry_run,
        report=partial(report, comparison=arguments.comparison),
        comparison=arguments.comparison,
    )


if __name__ == "__main__":
    exit_on_errors(main)
