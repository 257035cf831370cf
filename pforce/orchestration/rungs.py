"""Early stopping of a search's trials: each is trained to a rung, in images seen, and measured; the best go on.

A rung is a cell of its own, whose training the next one resumes. So a trial that waits at its rung occupies nothing,
later values of other trials count too, a killed driver finds all values in the records, and every executor can do it.
Optuna's pruners decide, each time in a study in memory that holds the values known by then.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState, create_trial

from pforce.base.errors import ConfigError, require, require_one_of
from pforce.base.words import counted
from pforce.config import Experiment
from pforce.metrics.names import VALIDATION_LOSS
from pforce.orchestration.objectives import Objective
from pforce.orchestration.sweep import Cell, Work
from pforce.records.parts import CellParts
from pforce.records.sweeps import IMAGES

Pruner = Literal["halving", "hyperband", "median"]
PRUNERS: tuple[Pruner, ...] = get_args(Pruner)
PBT = (
    "changes a training's settings on the way, so it has no name of the kind that tables compare: give halving, "
    "hyperband or median"
)
MOST_RUNGS = 8
DEFAULT_RUNGS = 2
STARTUP = 4
"""Trials with a value at a rung below which the median stops none."""


@dataclass(frozen=True)
class RungSettings:
    """When trials of a search are stopped early."""

    pruner: Pruner
    rungs: tuple[int, ...] = ()
    """Images seen at the rungs; by default two: the budget divided by the reduction, and by its square."""
    metric: str = VALIDATION_LOSS
    """Metric that decides. The validation loss needs no images."""
    reduction: int = 3
    """At each rung of halving and hyperband, one in so many trials goes on."""

    def __post_init__(self) -> None:
        require(str(self.pruner) != "pbt", "early_stop", self.pruner, f"another: population based training {PBT}")
        require_one_of("early_stop", self.pruner, PRUNERS)
        require(2 <= self.reduction <= 100, "reduction", self.reduction, "2 to 100")
        require(len(self.rungs) <= MOST_RUNGS, "rungs", self.rungs, f"at most {MOST_RUNGS}")

    def levels(self, experiment: Experiment) -> tuple[int, ...]:
        """Images seen at the rungs of an experiment, in order. FieldError for a rung that is not below its budget."""
        training, decay = experiment.training, experiment.optimizer.decay_images
        most = training.images - max(decay, training.batch)
        if self.rungs:
            rule = f"multiples of the batch {training.batch}, below the budget"
            rule += f" of {training.images:,} images" + (f" and its decay of {decay:,}" if decay else "")
            fits = all(0 < each <= most and each % training.batch == 0 for each in self.rungs)
            require(fits, "rungs", self.rungs, rule)
            return tuple(sorted(set(self.rungs)))
        steps = (training.steps // self.reduction**power for power in range(DEFAULT_RUNGS, 0, -1))
        found = sorted({step * training.batch for step in steps if 0 < step * training.batch <= most})
        told = f"above {training.images:,}, with a budget of {training.steps} steps too short for a rung"
        require(bool(found), "training.images", training.images, told)
        return tuple(found)


def rung_of(work: Work, images: int, metric: str) -> Work:
    """The cell of a rung: the same training at fewer images seen, before any decay.

    Args:
        metric: metric that decides; for the validation loss nothing else is measured.
    """
    (cell, *_), parts = work.cells, work.parts
    experiment = cell.experiment
    kept = tuple(each for each in experiment.training.resumable if each <= images)
    training = replace(experiment.training, images=images, snapshots=(), resumable=kept)
    experiment = replace(experiment, training=training, optimizer=replace(experiment.optimizer, decay_images=0))
    request = parts.request
    if metric == VALIDATION_LOSS:
        request = replace(request, images=0, difficulty=(), context=())
    own = CellParts(parts.trunk or parts.training, images, request)
    return Work(own, (Cell((*cell.values, (IMAGES, images)), experiment),))


def require_single(objectives: Sequence[Objective], paths: Sequence[str]) -> None:
    """Raise ConfigError where a search cannot stop trials early."""
    if len(objectives) > 1:
        raise ConfigError("--early-stop: needs a single objective, as a front has no order in which trials stop")
    if "training.images" in paths:
        raise ConfigError("--early-stop: training.images is an axis, and trials are compared at the same images seen")


def _pruner(settings: RungSettings, rungs: int) -> BasePruner:
    """Optuna's pruner; rung number k is its step reduction^k, whatever the rungs' images."""
    if settings.pruner == "median":
        return MedianPruner(n_startup_trials=STARTUP)
    if settings.pruner == "halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=settings.reduction)
    return HyperbandPruner(
        min_resource=1, max_resource=settings.reduction**rungs, reduction_factor=settings.reduction
    )  # fmt: skip


@lru_cache(maxsize=4096)
def goes_on(
    settings: RungSettings, name: str, trials: int, values: tuple[tuple[int, tuple[float, ...]], ...], trial: int,
    *, rungs: int, maximize: bool,
) -> bool:  # fmt: skip
    """Whether a trial goes on beyond the last rung at which it has a value.

    Args:
        name: name of the study, by which hyperband chooses a trial's bracket.
        trials: number of trials.
        values: number of each trial → its values at the rungs so far, in order.
        trial: number of the trial.
        rungs: number of rungs.
    """
    own = dict(values)
    place = len(own[trial]) - 1
    if not math.isfinite(own[trial][place]):
        return False
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = _pruner(settings, rungs)
        study = optuna.create_study(study_name=name, direction="maximize" if maximize else "minimize")
    step = [settings.reduction**rung for rung in range(place + 1)]
    for number in range(trials):
        there = own.get(number, ())[: place + 1]
        known = {} if number == trial else dict(zip(step, there, strict=False))
        # The median looks at finished trials only; the others note what they see, which running ones allow.
        ended = settings.pruner == "median" and bool(known) and all(map(math.isfinite, there))
        study.add_trial(create_trial(
            state=TrialState.COMPLETE if ended else TrialState.RUNNING, value=there[-1] if ended else None,
            intermediate_values=known,
        ))  # fmt: skip
    keep = True
    for rung in range(place + 1):  # in the order in which they were reported
        for number in [n for n, several in own.items() if n != trial and len(several) > rung] + [trial]:
            frozen = study.get_trials(deepcopy=False)[number]
            if number == trial:
                study._storage.set_trial_intermediate_value(frozen._trial_id, step[rung], own[trial][rung])
                frozen = study.get_trials(deepcopy=False)[number]
                keep = not pruner.prune(study, frozen)
            elif settings.pruner != "median":
                pruner.prune(study, frozen)
    return keep


def in_words(settings: RungSettings, levels: Sequence[int]) -> str:
    """What early stopping does, in words."""
    at = " and ".join(f"{images:,}" for images in levels)
    how = {
        "halving": f"one in {settings.reduction} goes on (successive halving)",
        "hyperband": f"by brackets, one in {settings.reduction} goes on (hyperband)",
        "median": "those worse than the median stop",
    }[settings.pruner]
    return f"Early stopping at {at} images seen, by {settings.metric}: {how}"


def stopped_note(stopped: Mapping[int, int]) -> str:
    """A sentence on the trials that were stopped: trial → images seen."""
    at = sorted(set(stopped.values()))
    several = (f"{list(stopped.values()).count(images)} at {images:,}" for images in at)
    return f"{counted(len(stopped), 'trial')} stopped early: {', '.join(several)} images seen"
