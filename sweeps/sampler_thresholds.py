"""Sampler thresholds: how one trained model's sampler trades distance against function evaluations.

Nothing is trained. Optuna searches solver, NFE, quantile, inner steps, context ratio and start_after for the smallest
distance at the smallest NFE; all samplers start from the same noise and are held against the same reference. Ends in
the Pareto front as a table and a picture.

Question: which solver and settings to sample a model with, at which cost?
Command: `python sweeps/sampler_thresholds.py`, after `sweeps/ltg_grid.py`; any checkpoint as its argument.
Cost: 40 samplers of 500 images at up to 24 NFE take 7 minutes on 2 cores for the micro model.
Measured: analysis/results/sampler_thresholds.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pforce.orchestration.find import find_source
from pforce.orchestration.plan import check_storage
from pforce.orchestration.sampler_report import make_subject, report
from pforce.orchestration.sampler_search import SearchSpace, check_space
from pforce.orchestration.sampler_sweep import SamplerSweep, run
from pforce.orchestration.script import exit_on_errors, make_console, print_mlflow
from pforce.sampling import Guidance
from pforce.sources import load_source
from pforce.tracking import Tracker, default_uri
from pforce.validation import require


@dataclass(frozen=True)
class Arguments:
    """Searches a trained model's samplers for the front of distance against NFE. Trains nothing."""

    model: Annotated[str, tyro.conf.Positional] = "best:ltg_grid"
    """A trial's folder or checkpoint, a model file, an MLflow run id, an experiment, or best:SWEEP."""
    trials: int = 40
    """Samplers that are measured. The same command with more goes on."""
    images: int = 500
    """Generated images a sampler."""
    reference_images: int = 1000
    """Held-out images that they are compared with; all where there are fewer."""
    space: Annotated[SearchSpace, tyro.conf.arg(name="")] = field(default_factory=SearchSpace)
    guidance: float = 1.0
    """Scale of classifier-free guidance, the same for all."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only steps that start between these times."""
    confirm: bool = True
    """Measure the front again from other noise: the best of many is flattered by its noise."""
    data: str | None = None
    """Experiment whose held-out images are the reference, for models that do not say."""
    seed: int = 0
    """Of the search."""
    noise_seed: int = 0
    """Of the noise that all samplers start from."""
    name: str = "sampler_thresholds"
    """Name of the sweep: its MLflow experiment and its files."""
    workers: int | None = None
    """Workers, each with the model loaded. By default one a GPU, or one a core."""
    storage: Path = Path("runs")
    """Folder of the MLflow database, of earlier sweeps, and of the results."""
    tracking_uri: str | None = None
    """MLflow server or database; by default a sqlite database in the storage folder."""
    ray_address: str | None = None
    """Cluster to connect to; by default RAY_ADDRESS, else one is started here."""


def main() -> int:
    a = tyro.cli(Arguments, description=__doc__)
    console = make_console()
    require(a.trials >= 1, "trials", a.trials, "≥ 1")
    guidance = Guidance(a.guidance, a.guidance_interval)
    source = load_source(find_source(a.model, storage=a.storage, tracking_uri=a.tracking_uri))
    check_space(a.space, guidance, source.model.config)
    folder = check_storage(a.storage)
    subject = make_subject(source, data=a.data, images=a.images, reference_images=a.reference_images, seed=a.noise_seed)
    sweep = SamplerSweep(
        a.name, subject, a.space, a.trials, guidance, a.seed, confirm=a.confirm, weights=source.weights
    )
    tracker = Tracker(a.tracking_uri or default_uri(a.storage), artifacts=folder / "artifacts")
    console.print(f"{source.path}: {a.trials} samplers, {a.images} images each", soft_wrap=True, highlight=False)
    outcome = run(sweep, tracker, console, workers=a.workers, address=a.ray_address)
    report(sweep, source, outcome, folder, console)
    print_mlflow(a.tracking_uri or default_uri(a.storage), console)
    return outcome.code


if __name__ == "__main__":
    exit_on_errors(main)
