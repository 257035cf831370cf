"""What is known of the work before it runs, and how an executor and whoever drives it speak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pforce.base.errors import ConfigError
from pforce.training import Callback
from pforce.trial.task import Answer, Event, Next

Hand = Callable[[], Next]
"""Gives the next task, or says why there is none."""
Listen = Callable[[Event], Answer]
"""Takes an event and says what to answer to the reports that follow."""
Tick = Callable[[], None]
"""To be called about once a second, busy or idle; what it raises ends the run."""


@dataclass(frozen=True)
class Setup:
    """What is known of the tasks before any of them runs, and on what they are to run."""

    name: str
    """What the work is called, for state that libraries keep by name."""
    tasks: int | None
    """Tasks that could run at once; None: as many as there is room for, one per GPU or one per core."""
    exactly: bool = False
    """Whether so many workers are wanted, or as many as fit."""
    cpus: int | None = None
    """CPU cores of a worker; by default the cores are shared among the tasks."""
    gpus: float | None = None
    """GPUs of a worker; below 1 several share one. By default 1 where there are any."""
    workers: int = 1
    """Workers that share each task."""
    spread: bool = False
    """Every worker of a task on a node of its own."""
    collective_timeout: float = 600.0
    """Seconds after which workers that wait for another one in a training step give up."""
    address: str | None = None
    """Ray cluster to connect to; by default RAY_ADDRESS, else one is started."""
    scratch: Path = Path()
    """Folder for state that libraries keep; nobody needs it afterwards."""
    say: Callable[[str], None] = lambda line: None
    """Shows a line to the user."""
    callbacks: Sequence[Callback] = ()
    """See the trainings of an executor that runs them in this process."""


def one_worker(name: str, setup: Setup) -> None:
    """ConfigError where tasks of several workers are asked of an executor that has none."""
    if setup.workers > 1:
        raise ConfigError(
            f"--executor {name}: runs each task in one process, and --workers is {setup.workers}: give --executor "
            "groups, or --workers 1"
        )


def here_only(name: str, setup: Setup) -> None:
    """ConfigError where an executor of this machine is to use a cluster."""
    if setup.address is not None:
        raise ConfigError(
            f"--ray-address {setup.address}: --executor {name} runs on this machine, without Ray; leave it out, or "
            "give --executor tune"
        )
