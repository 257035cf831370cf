"""How a worker's process on Ray begins. A module of its own that imports nothing heavy: what a worker needs is imported
by its first call, with nothing collected meanwhile (a tenth of a lone trial's fixed cost)."""

from __future__ import annotations

from typing import Any

from pforce.base.console import imports_kept


def alone(config: dict[str, Any]) -> None:
    """A Tune function trainable: one worker, in this process."""
    with imports_kept():
        import torch

        from pforce.executors.support.worker import serve
        from pforce.trial.perform import Seat

    device = torch.device("cuda" if config["gpus"] else "cpu")
    serve(config["meeting"], config["seat"], Seat(device, config["threads"], config["devices"]))


def of_group(config: dict[str, Any]) -> None:
    """A Ray Train loop: all workers of a group run it. Raises where the group cannot go on (one worker's failure
    leaves the others in a collective operation): the driver starts another group."""
    with imports_kept():
        import torch
        import torch.distributed as dist

        from pforce.executors.support.worker import serve
        from pforce.parallel import Workers
        from pforce.trial.perform import Seat

    workers = Workers.joined()
    device = torch.device("cuda" if config["gpus"] else "cpu")
    serve(config["meeting"], config["seat"], Seat(device, config["threads"], config["devices"], workers))
    if dist.is_initialized():
        dist.destroy_process_group(workers.patient)
