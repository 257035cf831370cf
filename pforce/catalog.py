"""Experiments, tables and sweeps by name: found through entry points, also of other packages, and in files, as
`FILE.py:NAME`.

The entry points `pforce.experiments` name packages whose modules have functions that take nothing and return an
Experiment; `pforce.tables` name modules with TABLES and SCALES; `pforce.sweeps` name packages whose modules are sweeps,
with a function `main` that reads the command line and returns an exit code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pforce.base.errors import ConfigError, InputError, did_you_mean
from pforce.config import EXPERIMENTS, Experiment, modules
from pforce.reproduction import Scale, Table

TABLES = "pforce.tables"
"""Group of entry points that name modules with tables."""
SWEEPS = "pforce.sweeps"
"""Group of entry points that name packages of sweeps."""
FILE_MODULE = "pforce_file_"
"""Prefix of the names of modules that are read from files."""
_FILE = re.compile(r"(.+\.py)(?::(\w+))?")
T = TypeVar("T")


def tables() -> dict[str, Table]:
    """All tables by name."""
    found: dict[str, Table] = {}
    for module in _of_tables():
        found |= {table.name: table for table in module.TABLES}
    return found


def scales() -> dict[str, Scale]:
    """The scales at which tables are run, by name."""
    found: dict[str, Scale] = {}
    for module in _of_tables():
        found |= module.SCALES
    return found


def _of_tables() -> Iterator[ModuleType]:
    for name in dict.fromkeys(point.value for point in entry_points(group=TABLES)):
        yield importlib.import_module(name)


def sweeps() -> dict[str, str]:
    """The modules of all sweeps by name: a module's own, without its package's."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(point.value for point in entry_points(group=SWEEPS)):
        package = importlib.import_module(name)
        found |= {info.name: f"{name}.{info.name}" for info in pkgutil.iter_modules(package.__path__)}
    return found


def table(text: str) -> Table:
    """The table of that name, or the table in a file, as `FILE.py:NAME` with the name of its variable or its own name.

    ConfigError, with the nearest name where there is no such table, or with the reason where the file cannot be read.
    """
    if not is_file(text):
        known = tables()
        if text not in known:
            raise ConfigError(f"{text}: unknown table; {did_you_mean(text, known, 'tables are:')}")
        return known[text]
    path, name = _split(text)
    module = _module_of(path)
    found: dict[str, Table] = {}
    for variable, value in vars(module).items():
        if isinstance(value, Table):
            found |= {variable: value, value.name: value}
    return _chosen(found, path, name, "table", [*{each.name: None for each in found.values()}])


def experiments() -> dict[str, Callable[[], Experiment]]:
    """All experiments by name: functions that take nothing and return an Experiment."""
    found: dict[str, Callable[[], Experiment]] = {}
    for module in modules():
        for name, function in _functions(module).items():
            if name in found:
                raise ConfigError(f"{name}: is an experiment of {found[name].__module__} and of {module.__name__}")
            found[name] = function
    return found


def _functions(module: ModuleType) -> dict[str, Callable[[], Experiment]]:
    """Functions defined in a module that take nothing and are annotated to return an Experiment, by name."""
    found: dict[str, Callable[[], Experiment]] = {}
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ != module.__name__ or name.startswith("_"):
            continue
        try:
            signature = inspect.signature(function, eval_str=True)
        except Exception as error:  # an annotation is any expression
            where = f"{module.__file__}: {name}"
            raise ConfigError(f"{where}: its annotations cannot be read: {type(error).__name__}: {error}") from error
        if signature.return_annotation is Experiment and not signature.parameters:
            found[name] = function
    return found


def experiment(text: str) -> Experiment:
    """The experiment of that name, or of `FILE.py:FUNCTION`. ConfigError as in `find`, and where the function fails or
    returns something else."""
    made: object
    try:
        made = find(text)()
    except Exception as error:  # whatever the user's function raises
        if not is_file(text):
            raise
        if isinstance(error, InputError):
            known = text.partition(":")[0] in str(error)
            raise ConfigError(str(error) if known else f"{text}: {error}") from error
        raise ConfigError(f"{text}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Experiment):
        raise ConfigError(f"{text}: returned {type(made).__name__}: must return an Experiment")
    for part in fields(made):
        kind = type(getattr(made, part.name))
        if kind.__module__.startswith(FILE_MODULE):
            raise ConfigError(
                f"{text}: {part.name} is a {kind.__name__} of the file itself, which workers and later commands do not "
                f"import: put the class into a module of a package that the entry point {EXPERIMENTS} names"
            )
    return made


def find(text: str) -> Callable[[], Experiment]:
    """The experiment's function of that name: a bare name, one with its module (`openmoji32.openmoji32_micro`), or
    `FILE.py:FUNCTION`; a file's only function need not be named.

    ConfigError, with the nearest name where there is no such function, or with the cause where the file cannot be
    imported.
    """
    if is_file(text):
        return _in_file(*_split(text))
    known = experiments()
    function = known.get(text.rsplit(".", 1)[-1])
    if function is None or ("." in text and not f".{function.__module__}".endswith(f".{text.rsplit('.', 1)[0]}")):
        hint = did_you_mean(text.rsplit(".", 1)[-1], sorted(known), "experiments are:")
        raise ConfigError(f"{text}: unknown experiment; {hint}")
    return function


def _in_file(path: Path, name: str) -> Callable[[], Experiment]:
    """A function in a file. One that is named needs no annotation: its value is checked when it is called."""
    module = _module_of(path)
    there = {
        key: value for key, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not key.startswith("_")
    }  # fmt: skip
    if name in there:
        needed = [p.name for p in inspect.signature(there[name]).parameters.values() if p.default is p.empty]
        if needed:
            raise ConfigError(f"{path}:{name}: needs {', '.join(needed)}: an experiment's function takes no arguments")
        return there[name]
    found = _functions(module)
    if not found and there and not name:
        raise ConfigError(
            f"{path}: has no function annotated `-> Experiment`; annotate one, or name it as {path}:NAME "
            f"({', '.join(there)})"
        )
    return _chosen(found, path, name, "function `def NAME() -> Experiment`", [*found])


# --- files -------------------------------------------------------------------------------------------------------


def is_file(text: str) -> bool:
    """Whether a name is `FILE.py` or `FILE.py:NAME`."""
    return bool(_FILE.fullmatch(text))


def _split(text: str) -> tuple[Path, str]:
    path, name = _FILE.fullmatch(text).groups()  # type: ignore[union-attr]  # `is_file` has looked
    return Path(path), name or ""


def _module_of(path: Path) -> ModuleType:
    """A file as a module under a unique name, imported once per process. ConfigError with the file's own error."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    name = f"{FILE_MODULE}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        del sys.modules[name]
        where = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        what = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(f"{path}{where}: {type(error).__name__}: {what}") from error
    return module


def _chosen(found: Mapping[str, T], path: Path, name: str, what: str, names: list[str]) -> T:
    """The value of that name in a file, or the file's only value.

    Args:
        names: one name per value; `found` may know values by further names.
    """
    if not names:
        raise ConfigError(f"{path}: has no {what}")
    if not name and len(names) > 1:
        raise ConfigError(f"{path}: has several: {', '.join(names)}; say which as {path}:NAME")
    if name and name not in found:
        raise ConfigError(f"{path}:{name}: not in the file, or no {what}; {did_you_mean(name, names)}")
    return found[name or names[0]]
