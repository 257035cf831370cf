"""Samplers of the micro model on a CPU, trained on up to 400,000 images, one seed: what `gpu-micro` asks, in small.

    python analysis/denoising_on_cpu.py --storage runs --executor processes --cpus-per-trial 1

Two trainings (PFT and SiT) with snapshots at 96,000, 192,000 and 400,000 images; at each, the four samplers and the SiT
draw from the same noise. An interrupted call resumes, in the middle of a training, too. `--images`, `--nfe` and
`--guidance` take less, or more, of it. The plan that it belongs to is `analysis/denoising_at_micro.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from pforce.base.console import exit_on_errors
from pforce.commands.command_line import parse
from pforce.orchestration.options import Options
from pforce.orchestration.reproduction import sweep_of
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce_experiments.paper import DENOISING_SCHEDULES, SCALES


@dataclass(frozen=True)
class Arguments:
    """Compare samplers of the micro model, trained on a CPU, at several images seen; write a table."""

    images: tuple[int, ...] = (96_000, 192_000, 400_000)
    """Images seen at which samplers are compared, multiples of 64; the last ends the training."""
    nfe: tuple[int, ...] = (24,)
    """Evaluations per image at the end of the training; before it, the first of them."""
    guidance: tuple[float, ...] = (1.0, 2.5)
    """Guidance scales at the end of the training; before it, the last of them."""
    generated: int = 1_000
    """Generated images per measurement."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds."""
    ema_decay: float = 0.9995
    """Decay of the averaged weights: at 192,000 images this one was better than 0.995."""
    dry_run: bool = False
    """Print what would run; run nothing."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


def sweep(a: Arguments) -> Sweep:
    """The comparison as a sweep."""
    base = SCALES["gpu-micro"]
    settings = {
        **base.settings, "training.images": a.images[-1], "training.ema_decay": a.ema_decay,
        "training.precision": "float32", "evaluation.images": a.generated,
    }  # fmt: skip
    scale = replace(base, seeds=a.seeds, settings=settings, nfe=a.nfe, guidance=a.guidance, images=a.images[:-1])
    return replace(sweep_of(DENOISING_SCHEDULES, scale), name="denoising_on_cpu")


def main() -> int:
    """Entry point."""
    arguments = parse(Arguments, description=__doc__)
    return run_sweep(sweep(arguments), arguments.options, dry_run=arguments.dry_run)


if __name__ == "__main__":
    exit_on_errors(main)
