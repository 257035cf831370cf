"""The settings of an executor, and the callbacks between it and the loop that drives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pforce.base.errors import ConfigError
from pforce.executors.support.placement import Node, Placement, place
from pforce.training import Callback
from pforce.trial.task import Answer, Event, Next

Hand = Callable[[], Next]
"""Function that returns the next task, or the reason why there is none."""
Listen = Callable[[Event], Answer]
"""Function that takes an event and returns the answer to the reports that follow."""
Tick = Callable[[], None]
"""Function that is called about once per second, busy or idle; an exception from it ends the run."""


@dataclass(frozen=True)
class Setup:
    """Settings of an executor: the tasks' number and resources, and the cluster."""

    name: str
    """Name of the work, for state that libraries keep by name."""
    tasks: int | None
    """Number of tasks that could run at once; None for as many as there is room for, one per GPU or per core."""
    exactly: bool = False
    """Whether exactly that many must run at once, instead of as many as fit."""
    cpus: int | None = None
    """CPU cores per worker; by default, the cores are shared among the tasks."""
    gpus: float | None = None
    """GPUs per worker; below 1, several share one. By default, 1 where there are any."""
    workers: int = 1
    """Workers per task."""
    spread: bool = False
    """Whether every worker of a task gets a node of its own."""
    gpu_type: str | None = None
    """Type of the GPUs; None for any."""
    whole_nodes: bool = False
    """Whether each task gets nodes that no other task shares."""
    collective_timeout: float = 600.0
    """Seconds after which workers that wait for another one in a training step fail."""
    address: str | None = None
    """Address of a Ray cluster; by default RAY_ADDRESS, else one is started."""
    scratch: Path = Path()
    """Folder for state that libraries keep; it is not needed afterwards."""
    say: Callable[[str], None] = lambda line: None
    """Called with lines for the user."""
    callbacks: Sequence[Callback] = ()
    """Callbacks of the trainings, for an executor that runs them in this process."""

    def place(self, nodes: Sequence[Node], most: int) -> Placement:
        """Fit the tasks onto the nodes of a cluster. ConfigError where not even one task fits.

        Args:
            most: number of tasks where `tasks` is None.
        """
        return place(
            self.tasks or most, nodes=nodes, cpus=self.cpus, gpus=self.gpus, exactly=self.exactly,
            workers=self.workers, spread=self.spread, gpu_type=self.gpu_type, whole_nodes=self.whole_nodes,
        )  # fmt: skip


def one_worker(name: str, setup: Setup) -> None:
    """Raise ConfigError where tasks have several workers and the executor does not support that."""
    if setup.workers > 1:
        raise ConfigError(
            f"--executor {name}: runs each task in one process, and --workers is {setup.workers}: give --executor "
            "groups, or --workers 1"
        )


def here_only(name: str, setup: Setup) -> None:
    """Raise ConfigError where a cluster is given to an executor that runs on this machine."""
    if setup.address is not None:
        raise ConfigError(
            f"--ray-address {setup.address}: --executor {name} runs on this machine, without Ray; leave it out, or "
            "give --executor tune"
        )
