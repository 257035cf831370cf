"""The space of a search. Oracle: Optuna's own bounds, and the cells that a grid of the same axes has."""

from __future__ import annotations

import optuna
import pytest

from pforce.base.errors import ConfigError
from pforce.config import flat_params, with_fields
from pforce.orchestration.axes import NOT_VARIED, changes_of
from pforce.orchestration.grammar import parse_axis, parse_zip
from pforce.orchestration.space import Space
from pforce_experiments.openmoji32 import openmoji32_micro

AXES = (
    parse_axis("timesteps.m=-1..1.5"),
    parse_axis("flow.difficulty_weight=log:0.001..1"),
    parse_axis("training.ema_decay=0.99,0.995"),
    parse_axis("sampler=euler,dual_loop"),
    parse_axis("sampler.inner_steps=int:2..6 when sampler=dual_loop"),
    parse_zip("timesteps.s,timesteps.sigma=1:0.1,0.5:0.3"),
)


def suggested(count: int, *, sampler: optuna.samplers.BaseSampler) -> list[dict[str, object]]:
    space, study = Space(AXES), optuna.create_study(sampler=sampler)
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(space.suggest(trial))
        study.tell(trial, 1.0)
    return found


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)])
def test_suggestions_are_experiments_within_their_bounds(sampler):
    values = suggested(30, sampler=sampler)
    base = openmoji32_micro()
    for each in values:
        changes: dict[str, object] = {}
        for path, value in each.items():
            changes |= {} if value is NOT_VARIED else changes_of(path, value)
        experiment = with_fields(base, changes)
        assert -1 <= experiment.timesteps.m <= 1.5
        assert 0.001 <= experiment.flow.difficulty_weight <= 1
        assert (experiment.timesteps.s, experiment.timesteps.sigma) in ((1, 0.1), (0.5, 0.3))
        dual = experiment.sampler.name == "dual_loop"
        assert (each["sampler.inner_steps"] is NOT_VARIED) != dual
        assert not dual or 2 <= experiment.sampler.inner_steps <= 6
    weights = [float(each["flow.difficulty_weight"]) for each in values]  # type: ignore[arg-type]
    assert sum(weight < 0.1 for weight in weights) > 10, "equal ratios"


def test_what_was_suggested_is_recognised_in_an_experiment():
    """So a cell that is known already can be told to a study."""
    space, base = Space(AXES), openmoji32_micro()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(10):
        trial = study.ask()
        values = space.suggest(trial)
        changes = {path: value for path, value in values.items() if value is not NOT_VARIED}
        fields = flat_params(with_fields(base, changes))
        found = space.parameters(fields)
        assert found is not None
        assert found == trial.params
        for name, value in space.rounded(trial.params).items():
            assert found[name] == (pytest.approx(value, rel=2e-3, abs=6e-4) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    "change",
    [{"timesteps.m": 1.6}, {"flow.difficulty_weight": 0.0}, {"training.ema_decay": 0.9}, {"timesteps.s": 0.5}],
)
def test_what_lies_outside_is_none_of_its_points(change):
    base = with_fields(openmoji32_micro(), {"timesteps.s": 1.0, "timesteps.sigma": 0.1})
    inside = flat_params(base) | {"sampler": "euler"}
    assert Space(AXES).parameters(inside) is not None
    assert Space(AXES).parameters(inside | change) is None


def test_spaces_that_are_none():
    with pytest.raises(ConfigError, match="at least one axis"):
        Space(())
    with pytest.raises(ConfigError, match="there twice"):
        Space((parse_axis("timesteps.m=1,1.0"),))
