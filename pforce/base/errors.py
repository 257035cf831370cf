"""Errors of user input, and the one way in which a configuration value is refused.

The core's configurations are plain frozen dataclasses that check themselves when they are made, so a wrong value is
refused wherever it comes from: a Python call, the command line, or a stored record. `pforce.config` adds types, the
path of the field, and hashing on top.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from pforce.base.foreign import printable


class InputError(Exception):
    """An error in the user's input. The message names the input, the error and the remedy; it may repeat a file's text,
    so what a terminal would obey is shown instead, and it is one line."""

    def __str__(self) -> str:
        return printable(super().__str__()).replace("\n", "\\n")


class ConfigError(InputError, ValueError):
    """An experiment or a sweep is not well-formed. The message names the field, the value and what is allowed."""


class UnknownName(ConfigError):
    """A part that is chosen by name has an unknown one.

    Attributes:
        part: the part (`sampler`).
        name: its name.
    """

    def __init__(self, part: str, name: object, known: Iterable[str]) -> None:
        self.part, self.name = part, name
        super().__init__(f"{part} = {name!r}: must be {one_of(name, known)}")


class FieldError(InputError, ValueError):
    """A field holds a value that is not allowed.

    Attributes:
        field: name of the field, dotted from the value that was checked (`timesteps.sigma`).
        value: the value that it held.
        allowed: the values that it may hold, as a phrase that follows "must be".
    """

    rule = "must be {}"
    """Sentence about the field, with `allowed` in place of the braces."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field} = {value!r}: {self.rule.format(allowed)}")

    def below(self, prefix: str) -> Self:
        """The error with a longer name of the field: `images` below `training.` is `training.images`."""
        return type(self)(f"{prefix}{self.field}", self.value, self.allowed)


class DoesNotApply(FieldError):
    """A field was given that the other choices make meaningless. `allowed` says to what or beside what it has no
    meaning."""

    rule = "does not apply {}; leave it out"


@contextmanager
def fields_below(prefix: str) -> Iterator[None]:
    """Name the fields of errors in this block from the outside: `images` below `training.` is `training.images`."""
    try:
        yield
    except FieldError as error:
        raise error.below(prefix) from error


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `FieldError(field, value, allowed)` unless the condition holds.

    Write conditions so that NaN fails them: `x > 0`, not `not x <= 0`.
    """
    if not condition:
        raise FieldError(field, value, allowed)


def require_applies(condition: bool, field: str, value: object, why: str) -> None:
    """Raise `DoesNotApply(field, value, why)` unless the condition holds.

    Args:
        why: phrase that follows "does not apply": "to a SiT, which predicts no uncertainty".
    """
    if not condition:
        raise DoesNotApply(field, value, why)


def require_one_of(field: str, value: object, known: Iterable[str]) -> None:
    """Raise FieldError, with the nearest name, unless the value is one of these names."""
    names = list(known)
    if value not in names:
        raise FieldError(field, value, one_of(value, names))


def not_a_setting(field: str, value: object, chosen: str, settings: Mapping[str, Sequence[str]]) -> FieldError:
    """The error for a setting that the chosen object does not have; it says which other choices have it.

    Args:
        settings: name → its settings, for all possible choices.
    """
    name = field.rsplit(".", 1)[-1]
    others = [other for other, own in settings.items() if name in own]
    has = f"a setting of {', '.join(others)}" if others else f"no setting of {', '.join(settings)}"
    own = ", ".join(settings.get(chosen, ())) or "none"
    return DoesNotApply(field, value, f"to {chosen}: it is {has}; {chosen} has {own}")


HINT = "did you mean"


def one_of(value: object, known: Iterable[str]) -> str:
    """What a field must be whose value is none of these names: "one of X, Y; did you mean Y?"."""
    names = list(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"one of {', '.join(names)}" + (f"; {HINT} {near[0]}?" if near else "")


def did_you_mean(name: str, known: Iterable[str], listed: str = "there are", *, cutoff: float = 0.6) -> str:
    """The hint for an unknown name: "did you mean X?" for the nearest known name, else the list of known names.

    Args:
        listed: beginning of the list.
        cutoff: least similarity of a name, from 0 to 1 (difflib's ratio).
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"{HINT} {near[0]}?" if near else f"{listed} {', '.join(names) or 'none'}"
