"""A tiny experiment on 64 real drawings at 32², kept beside the tests (OpenMoji, CC BY-SA 4.0)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pforce.config import Experiment
from pforce.data import DataConfig
from pforce.metrics import EvaluationConfig
from pforce.models import ModelConfig
from pforce.sampling import Euler
from pforce.training import OptimizerConfig, TrainingConfig

DATA = Path(__file__).with_name("golden_data")


def tiny(steps: int, **training) -> Experiment:
    """Two blocks of width 32, batch 16 in 4 streams."""
    fields = {"ema_decay": 0.9, "checkpoint_every": 5, "log_every": 1, **training}
    return Experiment(
        name="tiny",
        model=ModelConfig(depth=2, width=32, heads=2, patch=8, image_size=(32, 32), channels=3, classes=11),
        data=DataConfig(name="shards", resolution=32, path=str(DATA), streams=4, flip=True),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        training=TrainingConfig(images=16 * steps, batch=16, **fields),
        sampler=Euler(num_function_evaluations=3),
        evaluation=EvaluationConfig(images=8, held_out_images=16, label_images=16, reference_images=16),
    )


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
