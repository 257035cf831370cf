"""Callbacks of the training loop: checkpoints, progress, and a list of the curve's points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from pforce.training import checkpoint
from pforce.training.loop import Callback, Record, TrainState


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Weights, averaged weights and optimiser moments by name, as a checkpoint holds them."""
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in state.ema.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value
    return tensors


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def restore(state: TrainState, folder: Path) -> bool:
    """Continue from the newest valid checkpoint in `folder`; False where there is none."""
    found = checkpoint.load_newest(folder, identity=state.spec.identity)
    if found is None:
        return False
    tensors, meta = found
    state.model.load_state_dict(_part(tensors, "model/"))
    state.ema.model.load_state_dict(_part(tensors, "ema/"))
    moments = _part(tensors, "optimizer/")
    for name, parameter in state.model.named_parameters():
        keys = [key.removesuffix(f"/{name}") for key in moments if key.endswith(f"/{name}")]
        for key in keys:
            value = moments[f"{key}/{name}"]
            # AdamW keeps its step counter on the CPU.
            state.optimizer.state[parameter][key] = value if key == "step" else value.to(state.device)
    state.stream.load_state_dict(meta["stream"])
    state.step, state.seconds = meta["step"], meta["seconds"]
    return True


class Checkpoints(Callback):
    """Resumes at the start, saves every `checkpoint_every` steps and at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved_step = -1

    def on_start(self, state: TrainState) -> None:
        checkpoint.remove_partial(self.folder)
        if restore(state, self.folder):
            self.saved_step = state.step

    def on_record(self, state: TrainState, record: Record) -> None:
        # At a record all losses so far are known to be finite; a checkpoint never holds a diverged state.
        every = state.spec.training.checkpoint_every
        if state.step // every > max(self.saved_step, 0) // every:
            self._save(state)

    def on_end(self, state: TrainState) -> None:
        if state.step > self.saved_step:
            self._save(state)

    def _save(self, state: TrainState) -> None:
        meta = {
            "identity": state.spec.identity,
            "images_seen": state.images_seen,
            "seconds": state.seconds,
            "stream": state.stream.state_dict(),
            "torch": torch.__version__,
        }
        checkpoint.save(self.folder, state.step, state_tensors(state), meta)
        self.saved_step = state.step


class ProgressBar(Callback):
    """A bar with loss, images per second and time left."""

    def __init__(self, console: Console | None = None) -> None:
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
            TextColumn("loss {task.fields[loss]:.4f} · {task.fields[rate]:,.0f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    def on_start(self, state: TrainState) -> None:
        self.task = self.progress.add_task(
            "training", total=state.spec.training.images, completed=state.images_seen, loss=float("nan"), rate=0.0
        )
        self.progress.start()

    def on_record(self, state: TrainState, record: Record) -> None:
        self.progress.update(self.task, completed=record.images_seen, loss=record.loss, rate=record.images_per_second)

    def on_exit(self) -> None:
        self.progress.stop()


class OnRecord(Callback):
    """Passes every point of the curve to a function."""

    def __init__(self, function: Callable[[Record], None]) -> None:
        self.function = function

    def on_record(self, state: TrainState, record: Record) -> None:
        self.function(record)
