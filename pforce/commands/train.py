"""`pforce train`: one experiment, alone or on several workers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from pforce import catalog
from pforce.commands.data import experiments, summary
from pforce.config import Experiment, with_fields
from pforce.orchestration.plan import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.timesteps import SAMPLERS


@dataclass(frozen=True)
class _Train:
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


def train(arguments: list[str]) -> int:
    """Train and measure one experiment, and record it in MLflow: in this process, or with --workers on Ray.

    `pforce train NAME [--timesteps SAMPLER] [--FIELD VALUE …]`: the experiment's fields are typed options.
    """
    first = argparse.ArgumentParser(prog="pforce train", add_help=False, allow_abbrev=False)
    first.add_argument("name", nargs="?")
    first.add_argument("--timesteps", choices=sorted(SAMPLERS))
    if not arguments or arguments[0].startswith("-"):
        Console().print(
            "usage: pforce train EXPERIMENT [--timesteps SAMPLER] [--FIELD VALUE …]\n\n"
            "Trains one experiment in this process, without Ray (with --workers N: on N workers, by Ray Train), and\n"
            "records it in MLflow. Every field of the experiment is an option:\n"
            "`pforce train EXPERIMENT --help` lists them with their types and defaults.\n"
            f"--timesteps switches the timestep sampler: {', '.join(SAMPLERS)}.\n",
            markup=False,
            highlight=False,
        )
        return experiments()
    known, rest = first.parse_known_args(arguments)
    function = catalog.find(known.name)
    experiment = function()
    if known.timesteps:
        experiment = with_fields(experiment, {"timesteps": known.timesteps})
    parsed = tyro.cli(
        _Train,
        prog=f"pforce train {known.name}",
        description=f"{summary(function)} Every field of the experiment is an option.",
        default=_Train(experiment),
        args=rest,
    )
    sweep = Sweep("train", parsed.experiment, axes=(), seeds=(parsed.experiment.seed,))
    return run_sweep(sweep, parsed.options, executor="local" if parsed.options.workers == 1 else None)
