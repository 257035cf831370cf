"""Entry points of worker processes on Ray. The module imports nothing heavy: a worker's imports happen in its first
call, with the garbage collector off (a tenth of a single task's fixed cost)."""

from __future__ import annotations

from typing import Any

from pforce.base.console import imports_kept


def alone(config: dict[str, Any]) -> None:
    """Ray Tune's function trainable: one worker, in this process."""
    with imports_kept():
        import torch

        from pforce.executors.support.worker import serve
        from pforce.trial.perform import Seat

    device = torch.device("cuda" if config["gpus"] else "cpu")
    serve(config["meeting"], config["seat"], Seat(device, config["threads"], config["devices"]))


def of_group(config: dict[str, Any]) -> None:
    """Ray Train's loop, which all workers of a group run. Raises where the group cannot continue (one worker's failure
    leaves the others in a collective operation); the driver then starts another group."""
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
