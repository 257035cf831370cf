"""The protocol of executors, and their choice by name.

To add one: write a file beside this one with a class `Executor` that takes a `Setup` and has `__enter__`, `__exit__`,
`placement` and `run`, as in the protocol here. Its name is the file's. Nothing else changes.
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
from pforce.trial.task import Answer


class Executor(Protocol):
    """Runs tasks. As a context manager it holds the resources for that."""

    on_cluster: ClassVar[bool]
    """Whether it needs a Ray cluster."""
    here: bool
    """Whether its workers are on this machine alone, as far as is known; a cluster's are known inside the block."""
    placement: Placement
    """Simultaneous tasks and the resources of each; known inside the block. Entering raises ConfigError where not even
    one task fits."""

    def __init__(self, setup: Setup) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, hand: Hand, listen: Listen, tick: Tick) -> None:
        """Run tasks until there are none. `listen` gets each attempt's events, the last of which is Done or Failed;
        where a worker is lost without either, the executor reports Failed."""
        ...

    def push(self, answer: Answer) -> None:
        """Give all workers that have a task an answer at once, without waiting for their next report. Called by `tick`
        and `listen`."""
        ...


def names() -> list[str]:
    """Names of the executors, sorted."""
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
    """The executor of that name. ConfigError where there is none, it cannot run such tasks, or a library is missing."""
    return _class_of(name)(setup)


@dataclass(frozen=True)
class Workforce:
    """The executor and workers that a command's options choose for tasks of one process."""

    executor: str | None = None
    """Name of the executor; by default, this process for one worker, else workers on Ray."""
    workers: int | None = 1
    """Number of workers; None for as many as fit, one per GPU or per core."""
    address: str | None = None
    gpu_type: str | None = None
    """Type of the workers' GPUs; None for any."""

    @property
    def name(self) -> str:
        """The executor's name."""
        return self.executor or ("local" if self.workers == 1 and self.address is None else "tune")

    def make(
        self, name: str, scratch: Path, *, most: int | None = None, say: Callable[[str], None] = lambda line: None
    ) -> Executor:
        """Make the executor. ConfigError as in `make`.

        Args:
            name: name of the work.
            scratch: folder for state that libraries keep.
            most: number of tasks that there are.
            say: called with lines for the user.
        """
        tasks = self.workers
        if tasks is not None and most is not None:
            tasks = max(1, min(tasks, most))
        exactly = tasks is not None
        setup = Setup(
            name, tasks, exactly=exactly, address=self.address, scratch=scratch, say=say, gpu_type=self.gpu_type
        )
        return make(self.name, setup)
