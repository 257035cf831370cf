"""Training: configuration, loop, averaged weights, checkpoints, callbacks."""

from pforce.training.callbacks import Checkpoints, OnRecord
from pforce.training.config import OptimizerConfig, TrainingConfig
from pforce.training.loop import Callback, TrainingSpec, TrainState, new_state, train
from pforce.training.outcome import Answer, Diverged, Stopped
from pforce.training.strategy import Sharding, whole
from pforce.training.window import Record

__all__ = [
    "Answer", "Callback", "Checkpoints", "Diverged", "OnRecord", "OptimizerConfig", "Record", "Sharding", "Stopped",
    "TrainState", "TrainingConfig", "TrainingSpec", "new_state", "train", "whole",
]  # fmt: skip
