"""The cost of a table, counted before anything runs: cells, steps, images, storage, GPU-hours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from rich.console import Console
from rich.table import Table

from pforce import flow
from pforce.base.words import counted
from pforce.config import Experiment
from pforce.data import DataError, ensure
from pforce.models import ModelConfig, PatchForcingTransformer
from pforce.models.flops import forward_flops
from pforce.orchestration.sweep import Cell, Sweep
from pforce.records.parts import Inputs, branch_part, training_part
from pforce.sampling import count_flops
from pforce.training.checkpoint import KEPT
from pforce.training.flops import training_flops

SUSTAINED_TFLOPS = 300.0
"""Assumed TFLOP/s per GPU in training and sampling: 38 % of the 798 TFLOP/s that an H100 reached in a bfloat16 matrix
product of 8192³. The rate of our own code at these sizes has not been measured."""
SNAPSHOT_COPIES = 2
"""Sets of numbers as large as the weights in a snapshot that is only measured: weights, averages."""
COPIES = 4
"""Sets of numbers as large as the weights in a resumable checkpoint, in float32: weights, averages, two moments."""


@cache
def parameter_count(config: ModelConfig) -> int:
    """Number of parameters of a model."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PatchForcingTransformer(config).parameters())


@dataclass(frozen=True)
class Outlook:
    """The total cost of a sweep with no finished cells."""

    cells: int
    trainings: int
    steps: int
    images_trained: int
    images_drawn: int
    storage_bytes: int
    training_flops: float
    evaluation_flops: float

    def gpu_hours(self, tflops: float) -> float:
        """GPU-hours at a number of sustained TFLOP/s per GPU."""
        return (self.training_flops + self.evaluation_flops) / (tflops * 1e12) / 3600


def _evaluation_flops(e: Experiment) -> float:
    passes = flow.VALIDATION_SEGMENTS + len(e.evaluation.difficulty_timesteps) * e.model.difficulty_head
    once = forward_flops(e.model, 1)  # all patches of a held-out image are at one timestep
    return e.evaluation.images * count_flops(e.model, e.sampler) + e.evaluation.held_out_images * passes * once


def outlook(cells: list[Cell]) -> Outlook:
    """The total cost of cells; a training that several cells share counts once."""
    nothing = Inputs("", 0, 0, "", "", "")  # the data are the same for all
    budgets: dict[str, dict[int, Experiment]] = {}
    for cell in cells:
        e = cell.experiment
        training, decay = training_part(e, nothing).digest, e.optimizer.decay_images
        if decay:
            of_branch = branch_part(training, start=e.training.images - decay, images=decay).digest
            budgets[of_branch] = {
                decay: replace(e, training=replace(e.training, images=decay, snapshots=(), resumable=()))
            }
        if (trunk := e.trunk) or not decay:
            e = trunk or e
            budgets.setdefault(training, {})[e.training.images] = e
    several = [of[max(of)] for of in budgets.values()]  # shorter ones are snapshots of the longest
    return Outlook(
        cells=len(cells),
        trainings=len(several),
        steps=sum(e.training.steps for e in several),
        images_trained=sum(e.training.images for e in several),
        images_drawn=sum(cell.experiment.evaluation.images for cell in cells),
        storage_bytes=sum(
            (KEPT * COPIES + (len(of) - 1) * SNAPSHOT_COPIES) * 4 * parameter_count(of[max(of)].model)
            for of in budgets.values()
        ),
        training_flops=float(sum(training_flops(e.model) * e.training.images for e in several)),
        evaluation_flops=sum(_evaluation_flops(cell.experiment) for cell in cells),
    )


def print_outlook(sweep: Sweep, console: Console, *, tflops: float, gpus: int) -> None:
    """Print the rows of a table, and the total cost with its basis."""
    cells = sweep.cells()
    table = Table(
        title=f"{sweep.name}: {counted(len(cells), 'cell')} ({counted(len(sweep.seeds), 'seed')})", title_justify="left"
    )
    for name in ("row", "parameters", "steps", "images", "NFE", "images drawn", "GPU-hours per seed, alone"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for cell in (cell for cell in cells if cell.experiment.seed == sweep.seeds[0]):
        e, alone = cell.experiment, outlook([cell])
        table.add_row(
            str(cell.values[0][1]), f"{parameter_count(e.model) / 1e6:.0f} M", f"{e.training.steps:,}",
            f"{e.training.images:,}", f"{e.sampler.schedule().num_function_evaluations}", f"{e.evaluation.images:,}",
            f"{alone.gpu_hours(tflops):,.2f}",
        )  # fmt: skip
    console.print(table)
    o = outlook(cells)
    hours = o.gpu_hours(tflops)
    lines = [
        f"{counted(o.cells, 'cell')} from {counted(o.trainings, 'training')}: {o.steps:,} steps, "
        f"{o.images_trained:,} images trained on, {o.images_drawn:,} drawn",
        f"storage: {o.storage_bytes / 1e9:,.1f} GB of snapshots and checkpoints ({KEPT} per training with weights, "
        "averages, two moments)",
        f"device-hours: {hours:,.1f} GPU-hours, {hours / gpus:,.1f} hours on {counted(gpus, 'GPU')}",
        f"estimated from counted products: {o.training_flops:.3g} FLOP of training, {o.evaluation_flops:.3g} of "
        f"sampling and measuring, at {tflops:g} TFLOP/s per GPU: an assumption (--tflops), 38 % of what an H100 "
        "reached in bfloat16 matrix products by default",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def missing_data(sweep: Sweep) -> str | None:
    """The reason why the data of a sweep cannot be read here; None where they can."""
    try:
        ensure(sweep.base.data, progress=False)
    except DataError as error:
        return str(error)
    return None
