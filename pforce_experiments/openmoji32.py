"""OpenMoji at 32² (and 64² for a GPU): real drawings without a download, small enough for a CPU.

Question: does the way patch timesteps are drawn change the images, at a scale that fits a laptop?
Command: `pforce train openmoji32_micro`, or a sweep over it: `python sweeps/ltg_grid.py`.
Cost: the micro model trains on about 120 images per second and core.
Expected: see `analysis/results/ltg_grid_full.md`.
"""

from __future__ import annotations

from dataclasses import replace

from pforce.config import Experiment
from pforce.data.config import DataConfig
from pforce.metrics.config import EvaluationConfig
from pforce.models import sized
from pforce.sampling import Euler
from pforce.timesteps import LTG
from pforce.training.config import OptimizerConfig, TrainingConfig
from pforce_experiments.variants import as_sit

CLASSES = 11
"""Number of Unicode groups in the OpenMoji set; the manifest of the built data set names them."""


def openmoji32_micro() -> Experiment:
    """PFT-micro (1.3 M parameters, patch 4): the experiment that all small results share. 96,000 images."""
    return Experiment(
        name="openmoji32_micro",
        model=sized("micro", patch=4, image_size=(32, 32), channels=3, classes=CLASSES),
        timesteps=LTG(),
        data=DataConfig(name="openmoji", resolution=32),
        # Of 5e-4, 1e-3, 2e-3 and 4e-3 the validation loss after 12,800 images was 0.484, 0.431, 0.369 and 0.319;
        # 2e-3 leaves room before a training of 96,000 images becomes unstable.
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        training=TrainingConfig(
            images=96_000, batch=64, ema_decay=0.995, ema_warmup=True, checkpoint_every=50, log_every=10
        ),
        sampler=Euler(num_function_evaluations=24),
        evaluation=EvaluationConfig(images=1000),
    )


def openmoji32_sit_micro() -> Experiment:
    """The baseline of `openmoji32_micro`: SiT, one uniform timestep per sample, no difficulty head."""
    return as_sit(openmoji32_micro(), "openmoji32_sit_micro")


def openmoji32_s() -> Experiment:
    """PFT-S (33 M parameters, patch 2), for a GPU. Not measured yet. 2,560,000 images."""
    base = openmoji32_micro()
    return replace(
        base,
        name="openmoji32_s",
        model=sized("S", patch=2, image_size=(32, 32), channels=3, classes=CLASSES),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=500),
        training=TrainingConfig(
            images=2_560_000, batch=256, ema_decay=0.999, ema_warmup=True, checkpoint_every=500, log_every=50
        ),
    )


def openmoji64_s() -> Experiment:
    """PFT-S/4 on 64² drawings (33 M parameters, 256 tokens), for one GPU; bfloat16, compiled, 128,000 images."""
    return replace(
        openmoji32_s(),
        name="openmoji64_s",
        model=sized("S", patch=4, image_size=(64, 64), channels=3, classes=CLASSES),
        data=DataConfig(name="openmoji", resolution=64),
        optimizer=OptimizerConfig(learning_rate=7e-4, warmup_steps=100),
        training=TrainingConfig(
            images=128_000,
            batch=128,
            ema_decay=0.995,
            ema_warmup=True,
            precision="bfloat16",
            compile=True,
            checkpoint_every=250,
            log_every=25,
        ),
    )


def openmoji32_sit_s() -> Experiment:
    """The baseline of `openmoji32_s`: SiT-S."""
    return as_sit(openmoji32_s(), "openmoji32_sit_s")
