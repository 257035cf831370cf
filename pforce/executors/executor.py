"""What an executor is, and which there are.

To add one: write a file beside this one with a class `Executor` that is made of a `Setup` and has `__enter__`,
`__exit__`, `placement` and `run`, as the protocol here says. Its name is the file's. Nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from pforce import executors
from pforce.base.errors import ConfigError, did_you_mean
from pforce.executors.support.placement import Placement
from pforce.executors.support.setup import Hand, Listen, Setup, Tick


class Executor(Protocol):
    """Where tasks run. As a context manager it holds what it needs for that."""

    on_cluster: ClassVar[bool]
    """Whether it needs a Ray cluster."""
    placement: Placement
    """Tasks at once, and what each has; known inside the block. ConfigError on entering where not one fits."""

    def __init__(self, setup: Setup) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, hand: Hand, listen: Listen, tick: Tick) -> None:
        """Run tasks until there are none. Of each attempt `listen` gets what its worker says, Done or Failed last;
        where a worker is lost without a word, Failed comes from here."""
        ...


def names() -> list[str]:
    """Names of the executors."""
    found = (info.name for info in pkgutil.iter_modules(executors.__path__) if not info.ispkg)
    return sorted(name for name in found if name != "executor")


def _class_of(name: str) -> type[Executor]:
    if name not in names():
        raise ConfigError(f"--executor {name}: {did_you_mean(name, names())}")
    try:
        found: type[Executor] = importlib.import_module(f"pforce.executors.{name}").Executor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--executor {name}: needs {error.name}, which is not installed: pip install 'ray[default,train,tune]', or "
            "give --executor processes, which runs on this machine without it"
        ) from error
    return found


def make(name: str, setup: Setup) -> Executor:
    """The executor of that name. ConfigError where there is none, it cannot run such tasks, or lacks a library."""
    return _class_of(name)(setup)


@dataclass(frozen=True)
class Workforce:
    """What a command's options say of where tasks of one process run."""

    executor: str | None = None
    """By default this process for one worker, else workers on Ray."""
    workers: int | None = 1
    """None: as many as fit, one per GPU or one per core."""
    address: str | None = None

    @property
    def name(self) -> str:
        """The executor's name."""
        return self.executor or ("local" if self.workers == 1 and self.address is None else "tune")

    def make(
        self, name: str, scratch: Path, *, most: int | None = None, say: Callable[[str], None] = lambda line: None
    ) -> Executor:
        """The executor. ConfigError as `make`.

        Args:
            most: tasks that there are to share.
        """
        tasks = self.workers
        if tasks is not None and most is not None:
            tasks = max(1, min(tasks, most))
        exactly = tasks is not None
        return make(self.name, Setup(name, tasks, exactly=exactly, address=self.address, scratch=scratch, say=say))
