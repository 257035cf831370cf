"""Training: configuration, loop, averaged weights, checkpoints, callbacks."""

from pforce.training.callbacks import Checkpoints, OnRecord, ProgressBar
from pforce.training.config import OptimizerConfig, TrainingConfig
from pforce.training.loop import Callback, Diverged, Record, TrainingSpec, TrainState, new_state, train
from pforce.training.strategy import Sharding, whole

__all__ = [
    "Callback", "Checkpoints", "Diverged", "OnRecord", "OptimizerConfig", "ProgressBar", "Record", "Sharding",
    "TrainState", "TrainingConfig", "TrainingSpec", "new_state", "train", "whole",
]  # fmt: skip
