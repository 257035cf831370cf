"""Finds the named experiments of the `experiments` package."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from pforce.config import PACKAGE, Experiment, modules
from pforce.validation import ConfigError, did_you_mean


def experiments() -> dict[str, Callable[[], Experiment]]:
    """Every experiment by its name: the functions of the package's modules that take nothing and return one."""
    found: dict[str, Callable[[], Experiment]] = {}
    for module in modules():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            signature = inspect.signature(function, eval_str=True)
            if signature.return_annotation is Experiment and not signature.parameters:
                if name in found:
                    raise ConfigError(f"{name}: is an experiment of {found[name].__module__} and of {module.__name__}")
                found[name] = function
    return found


def experiment(name: str) -> Experiment:
    """The experiment of that name; ConfigError as in `find`."""
    return find(name)()


def find(name: str) -> Callable[[], Experiment]:
    """The function of that name, bare or with its module (`openmoji32.openmoji32_micro`).

    ConfigError with the nearest name where there is none.
    """
    known = experiments()
    function = known.get(name.rsplit(".", 1)[-1])
    if function is None or ("." in name and function.__module__ != f"{PACKAGE}.{name.rsplit('.', 1)[0]}"):
        hint = did_you_mean(name.rsplit(".", 1)[-1], sorted(known), "experiments are:")
        raise ConfigError(f"{name}: unknown experiment; {hint}")
    return function
