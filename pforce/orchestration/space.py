"""The space of a search over the fields of an experiment: the axes of a sweep as parameters of an Optuna study.

A range is a number, equal ratios are a logarithmic one, values are a choice by their texts, fields that change together
are one choice, and an axis with a condition is a parameter only where that holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from pforce.base.errors import ConfigError
from pforce.orchestration.axes import NOT_VARIED, SAMPLER, Axis, Range, Zip, changes_of, format_value, holds

DIGITS = 4
"""Digits of suggested numbers."""
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

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of each axis' parameter, by the parameter's name."""
        return {parameter_of(axis): _distribution(axis) for axis in self.axes}

    @property
    def plain(self) -> list[dict[str, Any]]:
        """The space as plain data."""
        return [
            {
                "field": parameter_of(axis),
                "values": list(texts_of(axis)) if axis.range is None else str(axis.range),
                **({} if axis.when is None else {"when": [axis.when[0], format_value(axis.when[1])]}),
            }
            for axis in self.axes
        ]  # fmt: skip

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
                step = (trial.suggest_float(name, axis.range.low, axis.range.high, log=axis.range.log),)
            values |= dict(zip(axis.paths, step, strict=True))
        return values

    def rounded(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Suggested parameters with numbers as they are used: about four digits."""
        of = {parameter_of(axis): axis.range for axis in self.axes}
        return {
            name: _rounded(value, span) if (span := of[name]) is not None and not span.integer else value
            for name, value in parameters.items()
        }

    def grid(self, count: int | None) -> list[dict[str, Any]]:
        """Parameters of all combinations, with `count` points of each range. ConfigError for a range without a
        count."""
        found: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]
        for axis in self.axes:
            if axis.range is not None and count is None:
                raise ConfigError(
                    f"--axis {axis.paths[0]}={axis.range}: is a range; give its number of points (--grid N)"
                )
            name, grown = parameter_of(axis), []
            for values, params in found:
                if not holds(axis, values):
                    grown.append(({**values, **dict.fromkeys(axis.paths, NOT_VARIED)}, params))
                elif axis.range is not None:
                    kind = int if axis.range.integer else float
                    points = axis.range.points(count or 2)
                    grown += [({**values, axis.paths[0]: each}, {**params, name: kind(each)}) for each in points]
                else:
                    for text, step in texts_of(axis).items():
                        own = dict(zip(axis.paths, step, strict=True))
                        grown.append(({**values, **own}, {**params, name: text}))
            found = grown
        return [params for _, params in found]

    def parameters(self, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters of a study for an experiment's fields (by dotted path); None where they lie outside the space."""
        found: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for axis in self.axes:
            if not holds(axis, values):
                values |= dict.fromkeys(axis.paths, NOT_VARIED)
                continue
            name = parameter_of(axis)
            if axis.range is not None:
                number: Any = fields.get(axis.paths[0])
                if not _number(number) or not axis.range.low <= number <= axis.range.high:
                    return None
                found[name] = int(number) if axis.range.integer else float(number)
                step: Sequence[Any] = (found[name],)
            else:
                equal = (
                    (text, each) for text, each in texts_of(axis).items()
                    if all(_has(fields, path, value) for path, value in zip(axis.paths, each, strict=True))
                )  # fmt: skip
                text, step = next(equal, ("", ()))
                if not text:
                    return None
                found[name] = text
            values |= dict(zip(axis.paths, step, strict=True))
        return found


def _distribution(axis: Axis | Zip) -> BaseDistribution:
    if axis.range is None:
        return CategoricalDistribution(list(texts_of(axis)))
    if axis.range.integer:
        return IntDistribution(int(axis.range.low), int(axis.range.high), log=axis.range.log)
    return FloatDistribution(axis.range.low, axis.range.high, log=axis.range.log)


def _rounded(number: float, span: Range) -> float:
    """A number to about four digits of its range, as it becomes part of a training's name, is read and typed again."""
    if span.log:
        near = float(f"{number:.{DIGITS}g}")
    else:
        near = round(number, DIGITS - math.ceil(math.log10(span.high - span.low)))
    return min(max(near, span.low), span.high)


def _has(fields: Mapping[str, Any], path: str, value: Any) -> bool:
    """Whether an experiment has a value of an axis, a sampler with its settings included."""
    return all(
        _equal(fields.get(f"{name}.name" if name == SAMPLER else name), own)
        for name, own in changes_of(path, value).items()
    )


def _equal(a: Any, b: Any) -> bool:
    if _number(a) and _number(b):
        return bool(abs(a - b) <= CLOSE * max(abs(a), abs(b)))
    return format_value(_tuples(a)) == format_value(_tuples(b))


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
