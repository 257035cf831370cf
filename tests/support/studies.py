"""Searches over samplers with a study of their own."""

from __future__ import annotations

from pathlib import Path

from pforce.metrics.names import CostName
from pforce.orchestration.objectives import Objective
from pforce.orchestration.sampler_search import Search, SearchSpace
from pforce.orchestration.study import Method, Study
from pforce.sampling import Guidance
from pforce.storage import Storage


def searching(folder: Path, space: SearchSpace, method: Method = "tpe", name: str = "s") -> Search:
    """A search, as a process opens it that finds all measurements in the records."""
    objectives = (Objective("fd/openmoji"), Objective(CostName.NFE))
    study = Study(Storage.open(folder), name, None, space=space, objectives=objectives, method=method, trials=24)
    search = Search(space, Guidance(), study)
    for trial in study.trials:
        if trial.state.is_finished():
            search.recall(space.to_sampler(trial.params, Guidance()), *trial.values)
    return search
