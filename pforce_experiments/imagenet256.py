"""ImageNet 256² in SD-VAE latents (32×32×4, ×0.18215): the paper's class-conditional experiments.

Question: do PFT and its samplers improve FID over SiT at equal architecture and NFE?
Command: `pforce train imagenet256_pft_b --data.path FOLDER` with a folder of latent shards.
Expected (the paper, FID-50k without guidance, 80 epochs): SiT-B/2 33.0, PFT-B/2 27.9; XL/2 17.2 and 12.9.
Here: not measured. The reader of latent shards is still missing; the configurations are complete.
"""

from __future__ import annotations

from pforce.config import Experiment
from pforce.data.config import DataConfig
from pforce.metrics.config import EvaluationConfig
from pforce.models import sized
from pforce.sampling import Euler
from pforce.timesteps import LTG
from pforce.training.config import OptimizerConfig, TrainingConfig
from pforce_experiments.variants import as_sit


def imagenet256_pft_b() -> Experiment:
    """PFT-B/2: AdamW 1e-4, batch 256, 400 k steps, LTG(0.7, 1, 0.6), λ = 0.01."""
    return _pft("B", "imagenet256_pft_b")


def imagenet256_pft_xl() -> Experiment:
    """PFT-XL/2 with the same recipe."""
    return _pft("XL", "imagenet256_pft_xl")


def imagenet256_sit_b() -> Experiment:
    """The baseline of `imagenet256_pft_b`: SiT-B/2, one uniform timestep per sample."""
    return as_sit(imagenet256_pft_b(), "imagenet256_sit_b")


def imagenet256_sit_xl() -> Experiment:
    """The baseline of `imagenet256_pft_xl`: SiT-XL/2."""
    return as_sit(imagenet256_pft_xl(), "imagenet256_sit_xl")


def _pft(size: str, name: str) -> Experiment:
    return Experiment(
        name=name,
        model=sized(size, patch=2, image_size=(32, 32), channels=4, classes=1000),
        timesteps=LTG(m=0.7, s=1.0, sigma=0.6),
        data=DataConfig(name="shards", resolution=32, path="imagenet256-latents", flip=False),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000),
        training=TrainingConfig(images=400_000 * 256, batch=256, ema_decay=0.9999, precision="auto"),
        sampler=Euler(num_function_evaluations=100),
        evaluation=EvaluationConfig(images=50_000, held_out_images=5000, label_images=5000, reference_images=5000),
    )
