"""The executor of one process among many that share nothing but the storage, as the jobs of a Slurm array do. Each
plans the same sweep, takes a lease on a training, runs it in this process, and takes the next. It needs no Ray, and no
driver: nothing but the storage says what is left, and `pforce mirror` shows it in MLflow."""

from __future__ import annotations

from typing import ClassVar

from pforce.executors import local


class Executor(local.Executor):
    """Runs tasks in this process, beside other processes that do the same."""

    name: ClassVar[str] = "worker"
