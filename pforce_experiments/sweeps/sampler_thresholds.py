"""Sampler thresholds: trade-off of distance against function evaluations in the samplers of one trained model.

Nothing is trained. Optuna searches solver, NFE and the solver's own settings (quantile, inner steps, context ratio,
start_after) for the smallest distance at the smallest NFE; all samplers start from the same noise and are compared with
the same reference. The result is the Pareto front, as a table and a picture.

Question: with which solver and settings should a model be sampled, and at which cost?
Command: `python sweeps/sampler_thresholds.py` after `sweeps/ltg_grid.py`, or with any checkpoint as argument.
Cost: 40 samplers of 500 images at up to 24 NFE take 7 minutes on 2 cores for the micro model.
Measured: analysis/results/sampler_thresholds.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import tyro

from pforce.base.console import exit_on_errors, make_console
from pforce.base.errors import HINT, ConfigError, FieldError, require
from pforce.base.words import counted
from pforce.commands.command_line import LIST_ENDS, parse
from pforce.commands.options import given, range_options
from pforce.config import modules
from pforce.executors.executor import Workforce
from pforce.orchestration.find import find_model
from pforce.orchestration.options import WORKER, ExecutorOptions, StoreOptions
from pforce.orchestration.sampler_report import front_summary, make_subject, report
from pforce.orchestration.sampler_search import SearchSpace, check_space
from pforce.orchestration.sampler_sweep import SamplerSweep, run
from pforce.orchestration.sweep_report import print_mlflow, push_files
from pforce.sampling import Guidance


@dataclass(frozen=True, kw_only=True)
class Arguments(ExecutorOptions, StoreOptions):
    """Search a trained model's samplers for the Pareto front of distance and NFE. Nothing is trained."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = "best:ltg_grid"
    """A trial's folder or checkpoint, a model file, an MLflow run id, an experiment, or best:SWEEP."""
    trials: int = 40
    """Number of samplers to measure. The same command with a larger number continues the search."""
    images: int = 500
    """Generated images per sampler."""
    reference_images: int = 1000
    """Number of held-out images with which they are compared; all where there are fewer."""
    samplers: tuple[str, ...] = SearchSpace.samplers
    """Solvers to try: euler, dual_loop, look_ahead, random_order, or some of your own."""
    nfe: tuple[int, int] = SearchSpace.nfe
    """Smallest and largest number of function evaluations per image."""
    ranges: Annotated[Any, tyro.conf.arg(name="sampler", constructor_factory=range_options)] = None
    guidance: float = 1.0
    """Scale of classifier-free guidance, for all samplers."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only steps that start between these two times. Default: guide all steps."""
    confirm: bool = True
    """Measure the front again from other noise: the best of many owes part of its result to its noise."""
    data: str | None = None
    """Experiment whose held-out images are the reference, for models that do not name one."""
    search: Literal["tpe", "nsga2", "gp", "random"] = "tpe"
    """Optuna's method; nsga2 is for many trials. The study stays in the storage (studies/NAME.journal, which
    optuna-dashboard opens)."""
    study: str | None = None
    """Address of a database that holds the study, for a storage in a bucket: postgresql://HOST/NAME."""
    seed: int = 0
    """Seed of the search."""
    noise_seed: int = 0
    """Seed of the noise from which all samplers start."""
    name: str = "sampler_thresholds"
    """Name of the sweep, of its MLflow experiment and of its files."""
    workers: int | None = None
    """Number of workers, each with the model loaded. Default: one per GPU, or one per core."""


def _space(a: Arguments) -> SearchSpace:
    """The space that is searched. FieldError as `SearchSpace` raises it, with the options' names; ConfigError for an
    unknown sampler, which may be the model that the list has taken."""
    try:
        return SearchSpace(a.samplers, a.nfe, given(a.ranges))
    except FieldError as error:
        if error.field in given(a.ranges):
            raise error.below("sampler.") from error
        if error.field != "samplers" or HINT in error.allowed:
            raise
        raise ConfigError(f"{error} ({LIST_ENDS})") from error


def _guidance(a: Arguments) -> Guidance:
    """The guidance of all samplers. FieldError with the option's name."""
    try:
        return Guidance(a.guidance, a.guidance_interval)
    except FieldError as error:
        option = "guidance" if error.field == "scale" else "guidance_interval"
        raise FieldError(option, error.value, error.allowed) from error


def main() -> int:
    """Entry point."""
    a = parse(Arguments, description=__doc__)
    console = make_console()
    require(a.trials >= 1, "trials", a.trials, "≥ 1")
    require(
        a.executor != WORKER, "executor", a.executor, "another one: a search's samplers are chosen by its one driver"
    )
    modules()  # samplers of a user's own are registered there
    space = _space(a)
    guidance = _guidance(a)
    a.check()
    storage = a.place
    source = find_model(a.model, storage=a.storage, tracking_uri=a.tracking_uri)
    check_space(space, guidance, source.model.config)
    subject = make_subject(
        source, storage, data=a.data, images=a.images, reference=a.reference_images, seed=a.noise_seed
    )
    sweep = SamplerSweep(
        a.name, subject, space, a.trials, guidance, a.seed, method=a.search, study=a.study, confirm=a.confirm,
        weights=source.weights,
    )  # fmt: skip
    tracker = a.tracker
    console.print(
        f"{source.path}: {counted(a.trials, 'sampler')}, {counted(a.images, 'image')} each",
        soft_wrap=True,
        highlight=False,
    )
    workforce = Workforce(a.executor, a.workers, a.ray_address)
    outcome = run(sweep, tracker, storage, console, workforce, summarize=partial(front_summary, sweep, source))
    if report(sweep, source, outcome, storage.root, console):
        push_files(storage, [f"{sweep.name}.{ending}" for ending in ("csv", "md", "tex", "html", "png")], console)
    print_mlflow(a.uri, console, tracker=tracker, storage=storage, name=sweep.name, identity=sweep.identity)
    return outcome.code


if __name__ == "__main__":
    exit_on_errors(main)
