"""`pforce train`: train and measure one experiment, in this process or on several workers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pforce import catalog
from pforce.base.console import make_console
from pforce.base.errors import ConfigError
from pforce.commands.command_line import parse
from pforce.commands.data import experiments, summary
from pforce.config import Experiment, check_setting, with_fields
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.sampling import SAMPLERS
from pforce.timesteps import SAMPLERS as TIMESTEP_SAMPLERS


@dataclass(frozen=True)
class _Train:
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


def _switches(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """({"timesteps": NAME, "sampler": NAME} as far as given, all other words). They come first, as they decide which
    options there are."""
    switched, rest, following = {}, [], iter(words)
    for word in following:
        option, sign, value = word.partition("=")
        if option not in ("--timesteps", "--sampler"):
            rest.append(word)
            continue
        found = value if sign else next(following, "")
        if not found or found.startswith("-"):
            raise ConfigError(f"{option}: its value is missing; `pforce train --help` lists the names")
        switched[option.removeprefix("--")] = found
    return switched, rest


def train(arguments: list[str]) -> int:
    """Train and measure one experiment, and record it in MLflow: in this process, or with --workers on Ray.

    `pforce train NAME [--timesteps SAMPLER] [--sampler SOLVER] [--FIELD VALUE …]`: the experiment's fields are typed
    options.
    """
    catalog.experiments()  # imports the modules that register a user's own samplers
    if not arguments or arguments[0].startswith("-"):
        make_console().print(
            "usage: pforce train EXPERIMENT [--timesteps SAMPLER] [--sampler SOLVER] [--FIELD VALUE …]\n\n"
            "Trains one experiment (a name, or FILE.py:FUNCTION for one of your own) in this process, without Ray\n"
            "(with --workers N: on N workers, by Ray Train), and records it in MLflow. Its fields are options:\n"
            "`pforce train EXPERIMENT --help` lists them with their types and defaults.\n"
            f"--timesteps switches the timestep sampler: {', '.join(TIMESTEP_SAMPLERS)}.\n"
            f"--sampler switches the sampler of the evaluation: {', '.join(SAMPLERS)}.\n",
        )
        return experiments()
    name, (switched, rest) = arguments[0], _switches(arguments[1:])
    function, experiment = catalog.find(name), with_fields(catalog.experiment(name), switched)
    for word, following in itertools.zip_longest(rest, rest[1:]):
        if word.startswith("--"):
            path, sign, value = word[2:].partition("=")
            check_setting(experiment, path.replace("-", "_"), value if sign else following)
    parsed = parse(
        _Train,
        f"pforce train {name}",
        rest,
        description=f"{summary(function)} Every field of the experiment is an option. --timesteps "
        f"({', '.join(TIMESTEP_SAMPLERS)}) and --sampler ({', '.join(SAMPLERS)}) switch the samplers of training and "
        "evaluation; the options are then those of the selected one.",
        default=_Train(experiment),
    )
    sweep = Sweep("train", parsed.experiment, axes=(), seeds=(parsed.experiment.seed,), known_by="cells")
    return run_sweep(sweep, parsed.options, executor="local" if parsed.options.workers == 1 else None)
