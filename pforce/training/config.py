"""Settings of the training: optimiser and budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pforce.base.errors import require

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, then a constant learning rate, and optionally a linear decay to 0 at the end."""

    learning_rate: float = 1e-4
    """Learning rate after the warm-up, > 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay, ≥ 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decays of the first and second moment, each in [0, 1)."""
    warmup_steps: int = 1000
    """Steps over which the learning rate rises linearly, ≥ 0."""
    gradient_norm: float = 1.0
    """Largest norm of the gradient, > 0: a larger gradient is scaled down to it."""
    decay_images: int = 0
    """Images at the end of the training over which the learning rate falls linearly to 0; a multiple of the batch. Up
    to there, the training equals one without decay, so trainings of several lengths and decays share their
    beginning."""

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "> 0")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "≥ 0")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "≥ 0")
        require(0 < self.gradient_norm < math.inf, "gradient_norm", self.gradient_norm, "> 0")
        require(self.decay_images >= 0, "decay_images", self.decay_images, "≥ 0 images")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step` (from 0), before any decay."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass(frozen=True)
class TrainingConfig:
    """The training budget, in images seen, and how the training runs."""

    images: int = 102_400_000
    """Images seen in total; a multiple of the batch. Trainings are compared at equal images seen."""
    batch: int = 256
    """Global batch: images per optimiser step, over all workers and accumulation steps."""
    accumulation: int = 1
    """Forward and backward passes per optimiser step; must divide a worker's share of the batch. More passes need less
    memory and give the same result."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights, in [0, 1)."""
    ema_warmup: bool = False
    """Use min(decay, (1 + k)/(10 + k)) at step k, so that the average in short runs does not include their start."""
    precision: Precision = "auto"
    """Precision of forward and backward passes. auto: bfloat16 autocast on a GPU that supports it, else float32."""
    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler; worthwhile for long runs)."""
    checkpoint_every: int = 5000
    """Steps between checkpoints."""
    checkpoint_minutes: float | None = 15.0
    """Minutes of wall-clock time after which a checkpoint is written although `checkpoint_every` steps are not done.
    None: only by steps."""
    log_every: int = 10
    """Steps between points of the loss curve, and between checks that the loss is finite."""
    snapshots: tuple[int, ...] = ()
    """Images seen at which the training is measured as well, each with a row of its own; multiples of the batch, below
    images. A longer training gives exactly the same rows."""
    resumable: tuple[int, ...] = ()
    """Images seen at which the training is kept for good together with its moments, so that others can resume from
    there. The end is always kept, until a longer training replaces it."""

    def __post_init__(self) -> None:
        require(self.batch > 0, "batch", self.batch, "> 0 images")
        nearest = max(1, round(self.images / self.batch)) * self.batch
        require(
            self.images > 0 and self.images % self.batch == 0,
            "images",
            self.images,
            f"a positive multiple of the batch {self.batch}, such as {nearest}",
        )
        require(
            self.accumulation > 0 and self.batch % self.accumulation == 0,
            "accumulation",
            self.accumulation,
            f"a divisor of the batch {self.batch}",
        )
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        require(self.checkpoint_every > 0, "checkpoint_every", self.checkpoint_every, "> 0 steps")
        minutes = self.checkpoint_minutes
        require(minutes is None or 0 < minutes < math.inf, "checkpoint_minutes", minutes, "> 0 minutes, or None")
        require(self.log_every > 0, "log_every", self.log_every, "> 0 steps")
        for name, several in (("snapshots", self.snapshots), ("resumable", self.resumable)):
            for images in several:
                fits = 0 < images <= self.images and images % self.batch == 0
                rule = f"multiples of the batch {self.batch}, from {self.batch} to images = {self.images}"
                require(fits, name, images, rule)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.images // self.batch
