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

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro
from rich.console import Console

from pforce import results
from pforce.base.console import exit_on_errors
from pforce.base.errors import ConfigError
from pforce.commands.sweep_arguments import PresetArguments, parse_sweep
from pforce.orchestration.axes import Axis
from pforce.orchestration.plan import Plan
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import (
    ALL_ROWS,
    Comparison,
    print_report,
    push_files,
    sweep_frame,
    table_rows,
)
from pforce.results.figures import calibration_figure
from pforce.results.tables import CALIBRATION_COLUMNS, COST_COLUMNS, QUALITY_COLUMNS


@dataclass(frozen=True, kw_only=True)
class Arguments(PresetArguments):
    """Train and measure an experiment at several λ; write a table, a calibration figure and MLflow runs."""

    difficulty_weight: Annotated[tuple[float, ...], tyro.conf.arg(aliases=("--values",))] = (0.001, 0.01, 0.1)
    """λ, the weights of the difficulty head's negative log-likelihood; 0 leaves the head untrained."""


def sweep(a: Arguments) -> Sweep:
    """The sweep as data, with λ in rising order, as the figure's colours need."""
    if not a.base.model.difficulty_head:
        raise ConfigError(f"{a.base.name}: a model without a difficulty head has no λ; give an experiment of a PFT")
    return a.sweep_of("lambda_sweep", (Axis("flow.difficulty_weight", tuple(sorted(a.difficulty_weight))),))


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
    arguments = parse_sweep(Arguments, description=__doc__)
    return arguments.run(sweep(arguments), partial(report, comparison=arguments.comparison))


if __name__ == "__main__":
    exit_on_errors(main)
