"""The space of a search over the fields of an experiment: the axes of a sweep as parameters of an Optuna study.

A range is a number, equal ratios are a logarithmic one, values are a choice by their texts, fields that change together
are one choice, and an axis with a condition is a parameter only where that holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from pforce.base.errors import ConfigError
from pforce.orchestration.sweep import NOT_VARIED, Axis, Zip, format_value, holds

CLOSE = 1e-9
"""Relative difference up to which a recorded number counts as one that a study has suggested."""


def parameter_of(axis: Axis | Zip) -> str:
    """Name of an axis' parameter: its field, or its fields with a `,` between."""
    return ",".join(axis.paths)


def texts_of(axis: Axis | Zip) -> dict[str, tuple[Any, ...]]:
    """Text of a step → its values. ConfigError where two steps have one text."""
    found: dict[str, tuple[Any, ...]] = {}
    for step in axis.steps:
        text = ":".join(map(format_value, step))
        if text in found:
            raise ConfigError(f"{parameter_of(axis)}={text}: is there twice")
        found[text] = step
    return found


@dataclass(frozen=True)
class Space:
    """The axes of a search, in their order: a condition names one before."""

    axes: tuple[Axis | Zip, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise ConfigError("a search needs at least one axis, such as --axis timesteps.sigma=0..1")
        for axis in self.axes:
            if axis.range is None:
                texts_of(axis)

    def distribution(self, axis: Axis | Zip) -> BaseDistribution:
        """The distribution of an axis' parameter."""
        if axis.range is None:
            return CategoricalDistribution(list(texts_of(axis)))
        if axis.range.integer:
            return IntDistribution(int(axis.range.low), int(axis.range.high), log=axis.range.log)
        return FloatDistribution(axis.range.low, axis.range.high, log=axis.range.log)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Path → value, as a study suggests it for a trial; NOT_VARIED where a condition does not hold."""
        values: dict[str, Any] = {}
        for axis in self.axes:
            if not holds(axis, values):
                values |= dict.fromkeys(axis.paths, NOT_VARIED)
                continue
            name = parameter_of(axis)
            if axis.range is None:
                texts = texts_of(axis)
                step = texts[trial.suggest_categorical(name, list(texts))]
            elif axis.range.integer:
                step = (trial.suggest_int(name, int(axis.range.low), int(axis.range.high), log=axis.range.log),)
            else:
                # Twelve digits, as in a grid: the value is part of a training's name, and is read and typed again.
                drawn = trial.suggest_float(name, axis.range.low, axis.range.high, log=axis.range.log)
                step = (min(max(float(f"{drawn:.12g}"), axis.range.low), axis.range.high),)
            values |= dict(zip(axis.paths, step, strict=True))
        return values

    def parameters(self, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters of a study for an experiment's fields (by dotted path); None where they lie outside the space."""
        found: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for axis in self.axes:
            if not holds(axis, values):
                values |= dict.fromkeys(axis.paths, NOT_VARIED)
                continue
            if any(path not in fields for path in axis.paths):
                return None
            own = [fields[path] for path in axis.paths]
            if axis.range is not None:
                (number,) = own
                inside = isinstance(number, int | float) and axis.range.low <= number <= axis.range.high
                if not inside or isinstance(number, bool):
                    return None
                found[parameter_of(axis)] = int(number) if axis.range.integer else float(number)
                step: Sequence[Any] = own
            else:
                equal = {text: each for text, each in texts_of(axis).items() if _equal(each, own)}
                if not equal:
                    return None
                text, step = next(iter(equal.items()))
                found[parameter_of(axis)] = text
            values |= dict(zip(axis.paths, step, strict=True))
        return found


def _equal(step: Sequence[Any], own: Sequence[Any]) -> bool:
    return all(
        abs(a - b) <= CLOSE * max(abs(a), abs(b)) if _number(a) and _number(b) else format_value(a) == format_value(b)
        for a, b in zip(step, own, strict=True)
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
