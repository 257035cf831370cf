"""The LTG grid: effect of m, s and sigma of the timestep sampler on the images.

Without arguments: OpenMoji at 32², the micro model, and a small grid that shows the whole path in minutes, too short to
rank anything. `--preset full` is a comparison that can rank: 96,000 images per cell and 3 seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from pforce.base.console import exit_on_errors
from pforce.commands.sweep_arguments import PresetArguments, parse_sweep
from pforce.orchestration.axes import Axis
from pforce.orchestration.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Arguments(PresetArguments):
    """Train and measure every cell of a grid over LTG (m, s, sigma); write a table and MLflow runs."""

    m: tuple[float, ...] = (0.0, 0.7)
    """Means of the logit of the largest timestep."""
    s: tuple[float, ...] = (1.0,)
    """Standard deviations of that logit."""
    sigma: tuple[float, ...] = (0.2, 0.6)
    """Spreads of the patches below the largest timestep."""


def sweep(a: Arguments) -> Sweep:
    """The sweep as data."""
    axes = (Axis("timesteps.m", a.m), Axis("timesteps.s", a.s), Axis("timesteps.sigma", a.sigma))
    return a.sweep_of("ltg_grid", axes)


def main() -> int:
    """Entry point."""
    arguments = parse_sweep(Arguments, description=__doc__)
    return arguments.run(sweep(arguments))


if __name__ == "__main__":
    exit_on_errors(main)
