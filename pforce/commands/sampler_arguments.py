"""The options that choose a sampler, shared by the commands that sample, and those that choose what is searched.

Every sampler's own settings are options, taken from its class: a new sampler's are among them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, get_type_hints

import tyro

from pforce.base.errors import require
from pforce.config import modules, named
from pforce.sampling import SAMPLERS, Euler, Guidance, Sampler
from pforce.sampling.samplers import COMMON, own_settings, require_settings
from pforce.sampling.schedule import Spacing
from pforce.trial.source import Source


def _texts(cls: type) -> dict[str, str]:
    """Field → the text that stands below it in its class, base classes included; none where there is no source."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):  # made in a console, or of Python itself
            continue
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = inspect.cleandoc(str(ast.literal_eval(text.value)))
    return found


def _settings() -> Iterator[tuple[str, dict[str, type[Sampler]]]]:
    """Each setting that some sampler has of its own, with the samplers that have it."""
    modules()
    names = dict.fromkeys(name for cls in SAMPLERS.values() for name in own_settings(cls))
    for setting in names:
        yield setting, {name: cls for name, cls in SAMPLERS.items() if setting in own_settings(cls)}


def _help(setting: str, samplers: dict[str, type[Sampler]]) -> str:
    """`dual_loop, random_order: evaluations a step.`"""
    text = next((text for cls in samplers.values() if (text := _texts(cls).get(setting))), "its own setting")
    return f"{', '.join(samplers)}: {text[0].lower()}{text[1:]}"


def _option(setting: str, *commands: Any) -> str:
    """What an option is called: the setting, or `sampler.SETTING` where a command has another option of that name."""
    taken = {each.name for arguments in commands for each in dataclasses.fields(arguments)}
    return f"sampler.{setting}" if setting in taken else setting


def _own_options() -> type:
    """A dataclass of all samplers' own settings, None where one is not given."""
    commands = (SamplerArguments, *SamplerArguments.__subclasses__())
    options: list[tuple[str, Any, Any]] = []
    for setting, samplers in _settings():
        hints = dict.fromkeys(get_type_hints(cls)[setting] for cls in samplers.values())
        defaults = {str(f.default) for cls in samplers.values() for f in dataclasses.fields(cls) if f.name == setting}
        shown = "" if defaults == {"None"} or len(defaults) > 1 else f" Default {defaults.pop()}."
        about = tyro.conf.arg(name=_option(setting, *commands), help=_help(setting, samplers) + shown)
        options.append((setting, Annotated[reduce(or_, hints) | None, about], None))
    return dataclasses.make_dataclass("OwnSettings", options, frozen=True)


def range_options(command: type) -> type:
    """A dataclass of the ranges that a search tries, one a setting, None where one is not given.

    Args:
        command: the dataclass of the options that there are besides.
    """
    options: list[tuple[str, Any, Any]] = []
    for setting, samplers in _settings():
        searching = {name: cls for name, cls in samplers.items() if setting in cls.searched}
        if searching:
            tried = [cls.searched[setting] for cls in searching.values()]
            shown = ", ".join(dict.fromkeys(f"{r.low:g} to {r.high:g} in steps of {r.step:g}" for r in tried))
            number: Any = int if all(each.integer for each in tried) else float
            text = f"{_help(setting, searching)} Searched from {shown}."
            about = tyro.conf.arg(name=_option(setting, command), help=text)
            options.append((setting, Annotated[tuple[number, number] | None, about], None))
    return dataclasses.make_dataclass("Ranges", options, frozen=True)


def given(options: Any) -> dict[str, Any]:
    """What a user gave of the options of `own` or of `range_options`."""
    return {} if options is None else {k: v for k, v in vars(options).items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class SamplerArguments:
    """A solver and its settings; what is left out is as the model's experiment has it."""

    sampler: str | None = None
    """Solver: euler, dual_loop, look_ahead, random_order, or one of your own. Default: what the model's experiment is
    evaluated with, or euler."""
    nfe: int | None = None
    """Function evaluations an image. Default: the experiment's, or 24."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 is none. Default: the experiment's, or 1."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only steps that start between these times."""
    spacing: Spacing | None = None
    """Spacing of the timesteps. Default: the experiment's, or linear."""
    shift: float | None = None
    """Shift of the shifted spacing. Default: the experiment's, or 3."""
    own: Annotated[Any, tyro.conf.arg(name="", constructor_factory=_own_options)] = None


def sampler_of(a: SamplerArguments, source: Source) -> Sampler:
    """The sampler asked for; what is not given is as the model's experiment has it, own settings if the solver is the
    same."""
    base = source.experiment.sampler if source.experiment else Euler()
    cls: type[Sampler] = type(base) if a.sampler is None else named(Sampler, a.sampler, "sampler")
    kept = COMMON if cls is not type(base) else (*COMMON, *own_settings(cls))
    scale = base.guidance.scale if a.guidance is None else a.guidance
    require(
        a.guidance_interval is None or scale != 1,
        "guidance_interval",
        a.guidance_interval,
        "left out without --guidance, or with a scale of 1",
    )
    interval = base.guidance.interval if a.guidance_interval is None else a.guidance_interval
    own = given(a.own)
    require_settings(cls, own)
    common = {"num_function_evaluations": a.nfe, "spacing": a.spacing, "shift": a.shift}
    if a.spacing is not None and a.spacing != "shifted":
        common["shift"] = a.shift if a.shift is not None else cls.shift  # the experiment's would contradict it
    fields = {
        **{name: getattr(base, name) for name in kept},
        **cls.overruled(own),
        **own,
        **{name: value for name, value in common.items() if value is not None},
        "guidance": Guidance(scale, interval),
    }
    return cls(**fields)
