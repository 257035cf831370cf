"""Runs of the tiny experiment."""

from __future__ import annotations

from pathlib import Path

import torch

from pforce.config import Experiment
from pforce.training import Answer, Callback, Checkpoints, OnRecord, Record, TrainState, train
from pforce.trial.train import training_state
from tests.training.conftest import DATA

CPU = torch.device("cpu")


def start(experiment: Experiment, identity: str = "id") -> TrainState:
    return training_state(experiment, DATA, identity, CPU)


def run(
    experiment: Experiment, folder: Path | None = None, *callbacks: Callback, identity: str = "id"
) -> tuple[TrainState, list[Record]]:
    """Train to the end, resuming from the folder's checkpoints; the state and the curve."""
    records: list[Record] = []
    state = start(experiment, identity)
    saving = [] if folder is None else [Checkpoints(folder)]
    train(state, flip=experiment.data.flip, callbacks=[*saving, OnRecord(records.append), *callbacks])
    return state, records


class Interrupted(Exception):
    """Ends a training from outside."""


class InterruptAt(Callback):
    """Ends the training after a number of steps, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: TrainState) -> None:
        if state.step == self.step:
            raise Interrupted


class Told(Callback):
    """Is answered once, after a number of steps, as a worker is by its driver."""

    def __init__(self, step: int, answer: Answer) -> None:
        self.step, self.answer = step, answer

    def on_step(self, state: TrainState) -> None:
        if state.step == self.step:
            state.answer = self.answer


def same(a: TrainState, b: TrainState) -> bool:
    """Weights, averages, optimiser moments and data position, bit for bit."""
    tensors = all(
        torch.equal(x, y)
        for first, second in ((a.model, b.model), (a.ema.model, b.ema.model))
        for x, y in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    moments = all(
        torch.equal(a.optimizer.state[p][key], b.optimizer.state[q][key])
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True)
        for key in ("exp_avg", "exp_avg_sq", "step")
    )
    return tensors and moments and a.stream.state_dict() == b.stream.state_dict() and a.step == b.step
