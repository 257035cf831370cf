"""Callbacks of the training loop: checkpoints, progress, and a list of the curve's points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from pforce.training import checkpoint
from pforce.training.checkpoint import CheckpointError
from pforce.training.loop import Callback, Record, TrainState, require_finite
from pforce.training.strategy import put, whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Weights, averaged weights and optimiser moments by name, as a checkpoint holds them. Split ones stay split."""
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in state.ema.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value
    return tensors


def restore(state: TrainState, folder: Path) -> bool:
    """Continue from the newest valid checkpoint in `folder`; False where there is none.

    The first worker reads; the others get what it read, so that all continue from the same checkpoint, whatever
    their view of the folder. CheckpointError as `checkpoint.load_newest`.
    """
    workers = state.workers
    tensors: dict[str, Tensor] = {}
    wanted = {f"model/{name}": value.shape for name, value in state.model.state_dict().items()}
    wanted |= {f"ema/{name}": value.shape for name, value in state.ema.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        wanted |= {f"optimizer/{key}/{name}": torch.Size() if key == "step" else parameter.shape for key in MOMENTS}

    def read() -> dict[str, Any] | None:
        found = checkpoint.load_newest(folder, identity=state.spec.identity)
        if found is None:
            return None
        tensors.update(found[0])
        for name, shape in wanted.items():
            if name not in tensors or tensors[name].shape != shape:
                has = f"has {name} as {tuple(tensors[name].shape)}" if name in tensors else f"lacks {name}"
                raise CheckpointError(
                    f"{folder}: the checkpoint of step {found[1]['step']} {has}: it is of another model, which expects "
                    f"{tuple(shape)}"
                )
        return found[1]

    meta = workers.first_does(read)  # what is wrong with it is raised by all: none is left waiting for a tensor
    if meta is None:
        return False
    for parameter in state.model.parameters():
        # AdamW keeps its step counter on the CPU.
        state.optimizer.state[parameter] = {
            key: torch.zeros(()) if key == "step" else torch.zeros_like(parameter) for key in MOMENTS
        }
    for name, target in state_tensors(state).items():
        put(target, tensors.get(name), workers)
    state.stream.load_state_dict(meta["stream"])
    state.step, state.seconds = meta["step"], meta["seconds"]
    state.curve.extend(Record(*point) for point in meta.get("curve", []))
    # Checkpoints of before had one number of devices for all of their training.
    state.device_seconds = meta.get("device_seconds", state.seconds * state.devices)
    return True


class Mirror(Protocol):
    """Another place of the checkpoints, such as a bucket."""

    def pull(self) -> None: ...  # its newest whole checkpoint into the folder, unless it is there
    def push(self, path: Path) -> None: ...  # one that was saved; where that fails the training goes on


class Checkpoints(Callback):
    """Resumes at the start, saves every `checkpoint_every` steps and at the end."""

    def __init__(self, folder: Path, mirror: Mirror | None = None) -> None:
        self.folder, self.mirror = folder, mirror
        self.saved_step = -1

    def on_start(self, state: TrainState) -> None:
        if state.workers.first:
            checkpoint.remove_partial(self.folder)
        if self.mirror is not None:
            state.workers.first_does(self.mirror.pull)
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
        workers = state.workers
        require_finite(state)
        # All have just ended a step: one that does not come to the meeting hangs, and is not waited for with patience.
        streams = workers.gather(state.stream.state_dict(), patient=False)
        meta = {
            "identity": state.spec.identity,
            "images_seen": state.images_seen,
            "seconds": state.seconds,
            "device_seconds": state.device_seconds,
            "stream": state.stream.merge(streams),
            "workers": workers.count,
            "curve": [list(point) for point in state.curve],
            "torch": torch.__version__,
        }
        tensors: dict[str, Tensor] = {}
        for name, tensor in state_tensors(state).items():
            full = whole(tensor)  # all workers take part where it is split
            if workers.first:
                tensors[name] = full.cpu()

        def write() -> None:
            path = checkpoint.save(self.folder, state.step, tensors, meta)
            if self.mirror is not None:
                self.mirror.push(path)

        # All learn of a full disk or a lost folder at once: none is left waiting in the next step.
        workers.first_does(write)
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
    """Passes every point of the curve to a function; after a resume first the last ones from before it.

    Args:
        recorded: images seen at the last point that is known already: those up to it are not passed again at a resume.
    """

    def __init__(self, function: Callable[[Record], None], *, recorded: int | None = None) -> None:
        self.function, self.recorded = function, recorded

    def on_start(self, state: TrainState) -> None:
        if self.recorded is not None:
            for record in state.curve:
                if record.images_seen > self.recorded:
                    self.function(record)

    def on_record(self, state: TrainState, record: Record) -> None:
        self.function(record)
