"""How many trials run at once, and on what: computed from the cluster so that nothing waits for ever."""

from __future__ import annotations

from dataclasses import dataclass

from pforce.config import ConfigError


@dataclass(frozen=True)
class Placement:
    """Resources of a trial and how many trials fit."""

    concurrent: int
    """Trials at once; all of them fit into the cluster at the same time."""
    cpus: int
    """CPU cores of a trial, and its threads."""
    gpus: float
    """GPUs of a trial; below 1 several trials share one."""

    @property
    def devices(self) -> float:
        """Devices that a trial's device-hours are counted in: its GPUs, or its CPU cores."""
        return self.gpus or self.cpus


def place(cells: int, *, cluster_cpus: int, cluster_gpus: float, cpus: int | None, gpus: float | None) -> Placement:
    """Fit `cells` trials into a cluster.

    Args:
        cells: trials that are to run.
        cluster_cpus: cores of the cluster.
        cluster_gpus: GPUs of the cluster.
        cpus: cores of a trial; None shares the cores among as many trials as there are cells or cores.
        gpus: GPUs of a trial; None gives one where there are any.

    ConfigError where one trial alone does not fit: it would wait for ever.
    """
    gpus = (1.0 if cluster_gpus >= 1 else 0.0) if gpus is None else gpus
    if not 0 <= gpus <= cluster_gpus:
        raise ConfigError(f"--gpus-per-trial {gpus:g}: must be between 0 and the cluster's {cluster_gpus:g}")
    if cpus is not None and not 0 < cpus <= cluster_cpus:
        raise ConfigError(f"--cpus-per-trial {cpus}: must be between 1 and the cluster's {cluster_cpus}")
    by_gpu = int(cluster_gpus / gpus) if gpus else cluster_cpus
    by_cpu = cluster_cpus // (cpus or 1)
    concurrent = max(1, min(cells, by_gpu, by_cpu))
    return Placement(concurrent, cpus or max(1, cluster_cpus // concurrent), gpus)
