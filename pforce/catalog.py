"""Finds named experiments, and tables of them: by entry points, so that those of other packages are found, too.

`pforce.experiments` names packages whose modules have functions that take nothing and return an Experiment,
`pforce.tables` modules with TABLES and SCALES.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from types import ModuleType

from pforce.base.errors import ConfigError, did_you_mean
from pforce.config import Experiment, modules
from pforce.reproduction import Scale, Table

TABLES = "pforce.tables"
"""Group of entry points."""


def tables() -> dict[str, Table]:
    """Every table by its name."""
    found: dict[str, Table] = {}
    for module in _of_tables():
        found |= {table.name: table for table in module.TABLES}
    return found


def scales() -> dict[str, Scale]:
    """The scales at which tables are run, by their names."""
    found: dict[str, Scale] = {}
    for module in _of_tables():
        found |= module.SCALES
    return found


def _of_tables() -> Iterator[ModuleType]:
    for name in dict.fromkeys(point.value for point in entry_points(group=TABLES)):
        yield importlib.import_module(name)


def experiments() -> dict[str, Callable[[], Experiment]]:
    """Every experiment by its name: functions that take nothing and return one."""
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
    if function is None or ("." in name and not f".{function.__module__}".endswith(f".{name.rsplit('.', 1)[0]}")):
        hint = did_you_mean(name.rsplit(".", 1)[-1], sorted(known), "experiments are:")
        raise ConfigError(f"{name}: unknown experiment; {hint}")
    return function
