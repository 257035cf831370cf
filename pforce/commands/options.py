"""Options for the settings that commands share, of samplers and evaluations, made from the classes that hold them.

A setting has the same name in every command: `--sampler NAME`, `--sampler.SETTING`, `--evaluation.SETTING`. A new field
of a sampler or an evaluation becomes an option of all commands.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from pforce.base.errors import require
from pforce.config import modules, named
from pforce.metrics.config import EvaluationConfig
from pforce.sampling import SAMPLERS, Euler, Guidance, Sampler
from pforce.sampling.samplers import COMMON, own_settings, require_settings
from pforce.trial.source import Source

SHARED = tuple(name for name in COMMON if name != "guidance")
"""Settings that all samplers have, beside guidance with its own."""
NFE = "--nfe"
"""Short form of --sampler.num-function-evaluations."""
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


def _metavar(hint: Any) -> str:
    """Placeholder for an option's value in help: `INT`, `{ema,raw}`, `FLOAT FLOAT`, `[FLOAT …]`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in _OPTIONAL:
        return "|".join(dict.fromkeys(_metavar(each) for each in inner if each is not type(None)))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple:
        return f"[{_metavar(inner[0])} …]" if Ellipsis in inner else " ".join(map(_metavar, inner))
    return "{True,False}" if hint is bool else str(hint.__name__).upper()


READABLE = tyro.constructors.ConstructorRegistry()
"""Rules by which command lines show the fields of dataclasses."""
_asking: list[type] = []


@READABLE.struct_rule
def _readable(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """Fields of a dataclass as tyro has them, but with texts as paragraphs (tyro keeps the source's line breaks), and
    `PATH` where tyro shows `{None}|PATH`."""
    cls = info.type
    if _asking or not (dataclasses.is_dataclass(cls) and isinstance(cls, type)):
        return None
    _asking.append(cls)  # else this rule would call itself instead of tyro's own
    try:
        spec = tyro.constructors.ConstructorRegistry.get_struct_spec(info)
    finally:
        _asking.pop()
    if not isinstance(spec, tyro.constructors.StructConstructorSpec):
        return None
    about, fields = texts(cls), []
    for field in spec.fields:
        hint: Any = field.type
        if get_origin(hint) in _OPTIONAL and field.default is None:
            hint = Annotated[hint, tyro.conf.arg(metavar=_metavar(hint))]
        text = " ".join(about[field.name].split()) if field.name in about else field.helptext
        fields.append(dataclasses.replace(field, type=hint, helptext=text))
    return dataclasses.replace(spec, fields=tuple(fields))


def parse(target: Callable[..., T], name: str | None = None, words: Sequence[str] | None = None, **options: Any) -> T:
    """Parse a command line into an instance of a dataclass, or into the result of a function.

    Args:
        name: name of the command in help; default: the script's.
        words: the command line without that name; default: this process's own.
        options: further options of `tyro.cli`.
    """
    return tyro.cli(target, prog=name, args=words, registry=READABLE, **options)


def _option(hint: Any, text: str, default: str, *, name: str | None = None, short: str | None = None) -> Any:
    """Type of an option that may be left out."""
    hint = reduce(or_, get_args(hint)) if get_origin(hint) in _OPTIONAL else hint
    return Annotated[
        hint | None,
        tyro.conf.arg(name=name, help=text, metavar=_metavar(hint), help_behavior_hint=f"(default: {default})",
                      aliases=[short] if short else None),
    ]  # fmt: skip


def _made(name: str, about: str, options: Mapping[str, Any]) -> type:
    """A dataclass of options that are None where they are not given."""
    fields: list[tuple[str, Any, Any]] = [(field, hint, None) for field, hint in options.items()]
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True, namespace={"__doc__": about})


def given(options: Any) -> dict[str, Any]:
    """Setting → value, for the options of a group that a user gave."""
    return {} if options is None else {k: v for k, v in vars(options).items() if v is not None}


def _settings() -> Iterator[tuple[str, dict[str, type[Sampler]]]]:
    """Yield each setting that only some samplers have, with the samplers that have it."""
    modules()
    names = dict.fromkeys(name for cls in SAMPLERS.values() for name in own_settings(cls))
    for setting in names:
        yield setting, {name: cls for name, cls in SAMPLERS.items() if setting in own_settings(cls)}


def _help(setting: str, samplers: Mapping[str, type[Sampler]]) -> str:
    """Help of a setting that only some samplers have, such as `dual_loop, random_order: evaluations per step.`"""
    text = next((text for cls in samplers.values() if (text := texts(cls).get(setting))), "its own setting")
    return f"{', '.join(samplers)}: {text[0].lower()}{text[1:]}"


def sampler_settings() -> type:
    """A dataclass of the settings that all samplers share, and of those that only some have."""
    common, guidance = texts(Sampler), texts(Guidance)
    hints = get_type_hints(Sampler)
    options: dict[str, Any] = {
        name: _option(hints[name], common[name], f"the experiment's, or {getattr(Euler(), name)}",
                      short=NFE if name == "num_function_evaluations" else None)
        for name in SHARED
    }  # fmt: skip
    for name, hint in get_type_hints(Guidance).items():
        default = f"the experiment's, or {getattr(Guidance(), name)}"
        options[f"guidance_{name}"] = _option(hint, guidance[name], default, name=f"guidance.{name}")
    for setting, samplers in _settings():
        kinds = dict.fromkeys(get_type_hints(cls)[setting] for cls in samplers.values())
        defaults = dict.fromkeys(
            str(f.default) for cls in samplers.values() for f in dataclasses.fields(cls) if f.name == setting
        )
        options[setting] = _option(reduce(or_, kinds), _help(setting, samplers), " or ".join(defaults))
    about = "Settings of the sampler. Defaults are those of the model's experiment."
    return _made("SamplerSettings", about, options)


def range_options() -> type:
    """A dataclass of the ranges in which a search varies the samplers' own settings."""
    options: dict[str, Any] = {}
    for setting, samplers in _settings():
        searching = {name: cls for name, cls in samplers.items() if setting in cls.searched}
        if searching:
            tried = [cls.searched[setting] for cls in searching.values()]
            shown = ", ".join(dict.fromkeys(f"{r.low:g} to {r.high:g} in steps of {r.step:g}" for r in tried))
            number: Any = int if all(each.integer for each in tried) else float
            options[setting] = _option(tuple[number, number], _help(setting, searching), shown)
    return _made("Ranges", "Smallest and largest value of a setting that is searched.", options)


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """A sampler and its settings. Defaults are those of the model's experiment."""

    sampler: str | None = None
    """Solver: euler, dual_loop, look_ahead, random_order, or one of your own. Default: the sampler that evaluates the
    model's experiment, or euler."""
    settings: Annotated[Any, tyro.conf.arg(name="sampler", constructor_factory=sampler_settings)] = None


def sampler_of(options: SamplerOptions, source: Source) -> Sampler:
    """The requested sampler. Settings that are not given are those of the model's experiment; a solver's own ones only
    where the experiment has the same solver."""
    base = source.experiment.sampler if source.experiment else Euler()
    cls: type[Sampler] = type(base) if options.sampler is None else named(Sampler, options.sampler, "sampler")
    own = given(options.settings)
    common: dict[str, Any] = {name: own.pop(name) for name in SHARED if name in own}
    asked: dict[str, Any] = {
        name: own.pop(f"guidance_{name}", getattr(base.guidance, name)) for name in ("scale", "interval")
    }
    require(
        asked["scale"] != 1 or "guidance_interval" not in given(options.settings),
        "sampler.guidance.interval",
        asked["interval"],
        "left out without --sampler.guidance.scale, or with a scale of 1",
    )
    require_settings(cls, own)
    if common.get("spacing", "shifted") != "shifted":
        common.setdefault("shift", cls.shift)  # the experiment's would contradict it
    kept: dict[str, Any] = {name: getattr(base, name) for name in SHARED}
    replaced = cls.overruled(own)
    if cls is type(base):
        kept |= {name: getattr(base, name) for name in own_settings(cls)}
    fields: dict[str, Any] = {**kept, **replaced, **own, **common, "guidance": Guidance(**asked)}
    return cls(**fields)


EVALUATION_DEFAULTS: Mapping[str, str] = {
    "detector": "the experiment's",
    "detector_weights": "the experiment's",
    "metrics": "frechet, kernel and precision_recall; with inception all",
    "reference_images": "all of train, up to 1000 of validation",
}
"""Setting → text for a default of `pforce evaluate` that is not a plain value."""
EVALUATION_TEXTS: Mapping[str, str] = {
    "reference": "validation or train images of the data set, a folder or .npz of images, or an .npz of statistics "
    "(mu, sigma, mu_s, sigma_s) as ADM publishes them.",
}
"""Setting → its help where `pforce evaluate` accepts more than an experiment does."""


@cache
def evaluation_settings(defaults: EvaluationConfig) -> type:
    """A dataclass of an evaluation's settings.

    Args:
        defaults: evaluation whose values are shown as defaults.
    """
    hints, about = get_type_hints(EvaluationConfig), texts(EvaluationConfig)
    options = {}
    for name, hint in hints.items():
        value = getattr(defaults, name)
        plain = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        options[name] = _option(hint, EVALUATION_TEXTS.get(name, about[name]), EVALUATION_DEFAULTS.get(name, plain))
    return _made(
        "EvaluationSettings",
        "Settings of the evaluation: metrics, reference, detector, and numbers of images.",
        options,
    )
