"""Options for the settings that commands share, of samplers and evaluations, made from the classes that hold them.

A setting has the same name in every command: `--sampler NAME`, `--sampler.SETTING`, `--evaluation.SETTING`. A new field
of a sampler or an evaluation becomes an option of all commands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, get_type_hints

import tyro

from pforce.base.errors import fields_below, require_applies
from pforce.commands.command_line import SHORT_NAMES, metavar_of, texts, without_none
from pforce.config import modules, named
from pforce.metrics.config import EvaluationConfig
from pforce.sampling import SAMPLERS, Euler, Guidance, Sampler
from pforce.sampling.samplers import COMMON, own_settings, require_settings
from pforce.trial.source import Source

SHARED = tuple(name for name in COMMON if name != "guidance")
"""Settings that all samplers have, beside guidance with its own."""


def _option(field: str, hint: Any, text: str, default: str, *, name: str | None = None) -> Any:
    """Type of an option that may be left out; one that is true or false is a flag, as in the class itself."""
    kind: Any = without_none(hint)
    short, hinted = SHORT_NAMES.get(field), f"(default: {default})"
    if kind is bool:
        flag: Any = tyro.conf.arg(name=name, help=text, help_behavior_hint=hinted)
        return Annotated[bool | None, tyro.conf.DisallowNone, flag]
    return Annotated[
        kind | None,
        tyro.conf.arg(name=name, help=text, metavar=metavar_of(kind), help_behavior_hint=hinted,
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
        name: _option(name, hints[name], common[name], f"the experiment's, or {getattr(Euler(), name)}")
        for name in SHARED
    }
    for name, hint in get_type_hints(Guidance).items():
        default = f"the experiment's, or {getattr(Guidance(), name)}"
        options[f"guidance_{name}"] = _option(name, hint, guidance[name], default, name=f"guidance.{name}")
    for setting, samplers in _settings():
        kinds = dict.fromkeys(get_type_hints(cls)[setting] for cls in samplers.values())
        defaults = dict.fromkeys(
            str(f.default) for cls in samplers.values() for f in dataclasses.fields(cls) if f.name == setting
        )
        options[setting] = _option(setting, reduce(or_, kinds), _help(setting, samplers), " or ".join(defaults))
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
            options[setting] = _option(setting, tuple[number, number], _help(setting, searching), shown)
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
    guided = asked["scale"] != 1 or "guidance_interval" not in given(options.settings)
    why = "without --sampler.guidance.scale, or with a scale of 1"
    require_applies(guided, "sampler.guidance.interval", asked["interval"], why)
    if common.get("spacing", "shifted") != "shifted":
        common.setdefault("shift", cls.shift)  # the experiment's would contradict it
    kept: dict[str, Any] = {name: getattr(base, name) for name in SHARED}
    replaced = cls.overruled(own)
    if cls is type(base):
        kept |= {name: getattr(base, name) for name in own_settings(cls)}
    with fields_below("sampler."):
        require_settings(cls, own)
        with fields_below("guidance."):
            guidance = Guidance(**asked)
        return cls(**{**kept, **replaced, **own, **common, "guidance": guidance})


EVALUATION_DEFAULTS: Mapping[str, str] = {
    "detector": "the experiment's",
    "detector_weights": "the experiment's",
    "metrics": "frechet, kernel and precision_recall; with inception inception_score, too",
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
        text, default = EVALUATION_TEXTS.get(name, about[name]), EVALUATION_DEFAULTS.get(name, plain)
        options[name] = _option(name, hint, text, default)
    return _made(
        "EvaluationSettings",
        "Settings of the evaluation: metrics, reference, detector, and numbers of images.",
        options,
    )
