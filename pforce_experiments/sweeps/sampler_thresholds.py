"""Sampler thresholds: how one trained model's sampler trades distance against function evaluations.

Nothing is trained. Optuna searches solver, NFE and the solver's own settings (quantile, inner steps, context ratio,
start_after) for the smallest distance at the smallest NFE; all samplers start from the same noise and are held against
the same reference. Ends in the Pareto front as a table and a picture.

Question: which solver and settings to sample a model with, at which cost?
Command: `python sweeps/sampler_thresholds.py`, after `sweeps/ltg_grid.py`; any checkpoint as its argument.
Cost: 40 samplers of 500 images at up to 24 NFE take 7 minutes on 2 cores for the micro model.
Measured: analysis/results/sampler_thresholds.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from pforce.base.console import exit_on_errors, make_console
from pforce.base.errors import require
from pforce.commands.options import given, parse, range_options
from pforce.config import modules
from pforce.executors.executor import Workforce
from pforce.orchestration.find import find_model
from pforce.orchestration.options import ExecutorOptions, StoreOptions
from pforce.orchestration.sampler_report import make_subject, report
from pforce.orchestration.sampler_search import SearchSpace, check_space
from pforce.orchestration.sampler_sweep import SamplerSweep, run
from pforce.orchestration.script import print_mlflow, push_files
from pforce.sampling import Guidance


@dataclass(frozen=True, kw_only=True)
class Arguments(ExecutorOptions, StoreOptions):
    """Searches a trained model's samplers for the front of distance against NFE. Trains nothing."""

    model: Annotated[str, tyro.conf.Positional] = "best:ltg_grid"
    """A trial's folder or checkpoint, a model file, an MLflow run id, an experiment, or best:SWEEP."""
    trials: int = 40
    """Samplers that are measured. The same command with more goes on."""
    images: int = 500
    """Generated images a sampler."""
    reference_images: int = 1000
    """Held-out images that they are compared with; all where there are fewer."""
    samplers: tuple[str, ...] = SearchSpace.samplers
    """Solvers that are tried: euler, dual_loop, look_ahead, random_order, or some of your own."""
    nfe: tuple[int, int] = SearchSpace.nfe
    """Smallest and largest number of function evaluations an image."""
    ranges: Annotated[Any, tyro.conf.arg(name="sampler", constructor_factory=range_options)] = None
    guidance: float = 1.0
    """Scale of classifier-free guidance, the same for all."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only steps that start between these times."""
    confirm: bool = True
    """Measure the front again from other noise: the best of many is flattered by its noise."""
    data: str | None = None
    """Experiment whose held-out images are the reference, for models that do not say."""
    seed: int = 0
    """Seed of the search."""
    noise_seed: int = 0
    """Seed of the noise that all samplers start from."""
    name: str = "sampler_thresholds"
    """Name of the sweep: its MLflow experiment and its files."""
    workers: int | None = None
    """Workers, each with the model loaded. By default one a GPU, or one a core."""


def main() -> int:
    """Entry point."""
    a = parse(Arguments, description=__doc__)
    console = make_console()
    require(a.trials >= 1, "trials", a.trials, "≥ 1")
    modules()  # samplers of a user's own are registered there
    space = SearchSpace(a.samplers, a.nfe, given(a.ranges))
    guidance = Guidance(a.guidance, a.guidance_interval)
    a.check()
    storage = a.place
    source = find_model(a.model, storage=a.storage, tracking_uri=a.tracking_uri)
    check_space(space, guidance, source.model.config)
    subject = make_subject(
        source, storage, data=a.data, images=a.images, reference=a.reference_images, seed=a.noise_seed
    )
    sweep = SamplerSweep(a.name, subject, space, a.trials, guidance, a.seed, confirm=a.confirm, weights=source.weights)
    tracker = a.tracker
    console.print(f"{source.path}: {a.trials} samplers, {a.images} images each", soft_wrap=True, highlight=False)
    outcome = run(sweep, tracker, storage, console, Workforce(a.executor, a.workers, a.ray_address))
    if report(sweep, source, outcome, storage.root, console):
        push_files(storage, [f"{sweep.name}.{ending}" for ending in ("csv", "md", "tex", "html", "png")], console)
    print_mlflow(a.uri, console)
    return outcome.code


if __name__ == "__main__":
    exit_on_errors(main)
