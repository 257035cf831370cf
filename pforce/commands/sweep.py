"""`pforce sweep`: train and measure a grid over any fields of an experiment, or search it."""

from __future__ import annotations

import inspect

from pforce.commands.sweep_arguments import SweepArguments, parse_sweep

EXAMPLES = """Examples:
  pforce sweep openmoji32_micro --axis timesteps.sigma=0.1,0.3 --axis flow.difficulty_weight=0.01,0.1 --seeds 3
  pforce sweep openmoji32_micro --axis timesteps=ltg:0.7,1,0.2,srm:1,parallel_uniform
  pforce sweep openmoji32_micro --zip timesteps.m,timesteps.s=0:1,0.7:0.5
  pforce sweep openmoji32_micro --axis sampler=euler,dual_loop --axis sampler.quantile=0.3,0.5 --when sampler=dual_loop
  pforce sweep openmoji32_micro --axis flow.difficulty_weight=log:0.001..1 --grid 4
  pforce sweep openmoji32_micro --axis timesteps.m=-1..1.5 --axis timesteps.sigma=0.05..1 --search tpe --trials 24
  pforce sweep openmoji32_micro --axis sampler.num_function_evaluations=6..24 --axis sampler=euler,look_ahead """
EXAMPLES += "--search nsga2 --trials 40 --objective fd --objective cost/nfe"


def sweep(words: list[str]) -> int:
    """Train and measure cells over any fields of an experiment, as a grid or a search; write a table and MLflow runs.

    `--when` belongs to the axis before it, so the order of words counts.
    """
    about = f"{inspect.cleandoc(SweepArguments.__doc__ or '')}\n\n{EXAMPLES}"
    arguments = parse_sweep(SweepArguments, "pforce sweep", words, description=about)
    return arguments.run(arguments.sweep())
