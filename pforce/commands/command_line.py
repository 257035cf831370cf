"""Command lines made from dataclasses and functions: their options, their help, and errors in this project's words.

tyro splits the words and writes help. Values are read here, so that a wrong one is reported like every other wrong
field (`evaluation.images = 'x': must be an integer`), wherever the class that refuses it is nested.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import os
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from pforce.base.errors import HINT, ConfigError, FieldError, one_of

SHORT_NAMES = {"num_function_evaluations": "--nfe"}
"""Field → short form of its option, wherever a command has the field."""
LIST_ENDS = "a list takes all words up to the next option, or up to --"
T = TypeVar("T")
_OPTIONAL = (Union, types.UnionType)


def texts(cls: type) -> dict[str, str]:
    """Field → the text below it in its class, base classes included; empty where a class has no source."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):  # made in a console, or built into Python
            continue
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = inspect.cleandoc(str(ast.literal_eval(text.value)))
    return found


# --- types and values --------------------------------------------------------------------------------------------


def without_none(hint: Any) -> Any:
    """A type without None: `int | None` is `int`."""
    if get_origin(hint) not in _OPTIONAL:
        return hint
    return reduce(or_, (each for each in get_args(hint) if each is not type(None)))


def metavar_of(hint: Any) -> str:
    """Placeholder for an option's value in help: `INT`, `{ema,raw}`, `FLOAT FLOAT`, `[FLOAT …]`."""
    hint = without_none(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in _OPTIONAL:
        return "|".join(dict.fromkeys(map(metavar_of, inner)))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple:
        return f"[{metavar_of(inner[0])} …]" if Ellipsis in inner else " ".join(map(metavar_of, inner))
    return "{True,False}" if hint is bool else str(hint.__name__).upper()


def _allowed(hint: Any, words: Sequence[str]) -> tuple[str, str]:
    """(the wrong value, what an option of this type must be), for words that are no value of it."""
    hint = without_none(hint)
    origin, inner = get_origin(hint), get_args(hint)
    shown = " ".join(words)
    if origin is Literal:
        return shown, one_of(shown, map(str, inner))
    if origin is tuple and Ellipsis in inner:
        wrong = next((word for word in words if not _reads(inner[0], word)), shown)
        each = _allowed(inner[0], [wrong])[1]
        return wrong, each if HINT in each else f"{each} ({LIST_ENDS})"
    if origin is tuple:
        return shown, f"{len(inner)} values, each {_allowed(inner[0], words[:1])[1]}"
    if origin in _OPTIONAL:
        return shown, " or ".join(dict.fromkeys(_allowed(each, words)[1] for each in inner))
    return shown, {int: "an integer", float: "a number", bool: "True or False"}.get(hint, f"a {metavar_of(hint)}")


def _item(hint: Any) -> Any:
    """Type of one item of a list; None for other types."""
    return get_args(hint)[0] if get_origin(hint) is tuple and Ellipsis in get_args(hint) else None


def _reads(hint: Any, word: str) -> bool:
    """Whether a word is a value of a type of single words."""
    if get_origin(hint) is Literal:
        return word in map(str, get_args(hint))
    try:
        hint(word)
    except ValueError:
        return False
    return True


class _Unreadable(Exception):
    """Words that are no value of an option's type. Not a ValueError, which tyro would print itself."""

    def __init__(self, hint: Any, words: list[str]) -> None:
        super().__init__(hint, words)
        self.hint, self.words = hint, words


class _Refused(Exception):
    """The error of a dataclass that refuses its fields; it does not know where in the command's options it is."""

    def __init__(self, cls: type, error: FieldError) -> None:
        super().__init__(cls, error)
        self.cls, self.error = cls, error


READABLE = tyro.constructors.ConstructorRegistry()
"""Rules by which command lines show and read the fields of dataclasses."""
_asking: list[Any] = []


def _tyros_own(ask: Callable[[Any], Any], info: Any) -> Any:
    """What tyro itself makes of a type: a rule that asks would else be called again."""
    _asking.append(info)
    try:
        return ask(info)
    finally:
        _asking.pop()


@READABLE.primitive_rule
def _value(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Values as tyro reads them, but with errors that say what is allowed, in a fixed order, and with `PATH` where
    tyro shows `{None}|PATH`."""
    if _asking:
        return None
    spec = _tyros_own(tyro.constructors.ConstructorRegistry.get_primitive_spec, info)
    if not isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):
        return None
    read, choices, single = spec.instance_from_str, spec.choices, spec._action is None
    hint = info.type if single else get_args(info.type)[0]  # one value of an option that may be repeated

    def checked(words: list[str]) -> Any:
        if choices is not None and not set(words) <= set(choices):
            raise _Unreadable(hint, words)
        try:
            return read(words)
        except (ValueError, TypeError) as error:
            raise _Unreadable(hint, words) from error

    shown = metavar_of(hint) if single and get_origin(hint) in (*_OPTIONAL, tuple) else spec.metavar
    return dataclasses.replace(spec, choices=None, metavar=shown, instance_from_str=checked)


@READABLE.struct_rule
def _readable(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """Fields of a dataclass as tyro has them, but with texts as paragraphs (tyro keeps the source's line breaks), short
    names, and no default where the text says it."""
    cls = info.type
    if _asking or not (dataclasses.is_dataclass(cls) and isinstance(cls, type)):
        return None
    spec = _tyros_own(tyro.constructors.ConstructorRegistry.get_struct_spec, info)
    if not isinstance(spec, tyro.constructors.StructConstructorSpec):
        return None
    about, fields = texts(cls), []
    for field in spec.fields:
        hint: Any = field.type
        text = " ".join(about[field.name].split()) if field.name in about else field.helptext
        settings: dict[str, Any] = {}
        if field.default is None or field.default == ():
            said = isinstance(text, str) and "Default" in text
            settings["help_behavior_hint"] = "" if said else "(default: none)" if field.default == () else None
        if field.name in SHORT_NAMES:
            settings["aliases"] = [SHORT_NAMES[field.name]]
        if settings and _settings_of(hint) is None:
            hint = Annotated[hint, tyro.conf.arg(**settings)]
        fields.append(dataclasses.replace(field, type=hint, helptext=text))

    @functools.wraps(cls, updated=())
    def made(**values: Any) -> Any:
        try:
            return cls(**values)
        except FieldError as error:
            raise _Refused(cls, error) from error

    return dataclasses.replace(spec, fields=tuple(fields), instantiate=made)


# --- names of options --------------------------------------------------------------------------------------------


class _Option(NamedTuple):
    """An option of a command, or a group of options."""

    path: str
    """Dotted name as errors say it: `training.images`; of a group with a dot at the end, or nothing."""
    names: tuple[str, ...]
    """Spellings on a command line, without dashes at their beginning and with `_` for `-`."""
    hint: Any
    """Type of its value; the class of a group."""


def _settings_of(hint: Any) -> Any:
    """Settings of an annotated type, as `tyro.conf.arg` makes them; None where it has none."""
    return next((each for each in get_args(hint)[1:] if hasattr(each, "constructor_factory")), None)


def _bare(hint: Any) -> Any:
    """A type without annotations."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _options(target: Any, default: Any = None, prefix: str = "") -> Iterator[_Option]:
    """Yield all options of a dataclass or function, and the groups that they form."""
    yield _Option(prefix, (), target)
    for name, hint in get_type_hints(target, include_extras=True).items():
        settings, inner = _settings_of(hint), getattr(default, name, None)
        kind = type(inner) if dataclasses.is_dataclass(inner) else _bare(hint)
        if settings is not None and settings.constructor_factory is not None:
            kind = settings.constructor_factory()
        own = settings.name if settings is not None and settings.name is not None else name
        if dataclasses.is_dataclass(kind):
            yield from _options(kind, inner, f"{prefix}{own}." if own else prefix)
        elif name != "return":
            short = [SHORT_NAMES.get(name), *((settings.aliases or ()) if settings is not None else ())]
            names = [prefix + own, *(each for each in short if each)]
            spelled = tuple(each.lstrip("-").replace("-", "_") for each in names)
            yield _Option(prefix + own, spelled, kind)


def _given(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option that was given, as `_Option.names` spell it, with all words up to the next one."""
    name: str | None = None
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            if name is not None:
                yield name, values
            name, sign, value = word.lstrip("-").partition("=")
            name, values = name.replace("-", "_"), [value] if sign else []
        else:
            values.append(word)
    if name is not None:
        yield name, values


def _named(error: _Unreadable, options: Sequence[_Option], words: Sequence[str]) -> ConfigError:
    """The error about an unreadable value, with the name of the option that has it."""
    value, allowed = _allowed(error.hint, error.words)
    given = [name for name, values in _given(words) if values[: len(error.words)] == error.words]
    fitting = [each.path for each in options if set(each.names) & set(given)]
    exact = [each.path for each in options if each.path in fitting and error.hint in (each.hint, _item(each.hint))]
    if not fitting:  # a positional argument
        exact = [each.path for each in options if each.hint == error.hint]
    name = next(iter([*exact, *fitting]), "arguments")
    return ConfigError(str(FieldError(name, value, allowed)))


def parse(target: Callable[..., T], name: str | None = None, words: Sequence[str] | None = None, **options: Any) -> T:
    """Parse a command line into an instance of a dataclass, or into the result of a function. ConfigError with the
    field, its value and what is allowed, for a wrong value.

    Args:
        name: name of the command in help; default: the script's.
        words: the command line without that name; default: this process's own.
        options: further options of `tyro.cli`.
    """
    # tyro looks at the output only. NO_COLOR: https://no-color.org; its errors go to the other stream.
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR") and sys.stderr.isatty()
    given = sys.argv[1:] if words is None else words
    try:
        return tyro.cli(target, prog=name, args=given, registry=READABLE, **options)
    except _Unreadable as error:
        raise _named(error, [*_options(target, options.get("default"))], given) from error
    except _Refused as refused:
        found = (each.path for each in _options(target, options.get("default")) if each.hint is refused.cls)
        raise ConfigError(f"{next(found, '')}{refused.error}") from refused.error
