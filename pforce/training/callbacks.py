"""Callbacks of the training loop: checkpoints and snapshots, and reports of the curve's points."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pforce.training import checkpoint
from pforce.training.checkpoint import CheckpointError, checkpoint_path, snapshot_path
from pforce.training.curve import write_segment
from pforce.training.loop import Callback, TrainState, require_finite
from pforce.training.outcome import Answer
from pforce.training.strategy import put, whole
from pforce.training.window import Record, Window

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state entries for each parameter."""


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Weights, averaged weights and optimiser moments by name, as a checkpoint holds them. Sharded tensors stay
    sharded."""
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in state.ema.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value
    return tensors


def restore(
    state: TrainState, folder: Path, *, at_most: int | None = None, identity: str | None = None
) -> list[Record]:
    """Resume from the newest valid checkpoint or snapshot in a training's folder, if there is one.

    The first worker reads it and sends it to the others, so that all resume from the same one, whatever their view of
    the folder. Returns the curve's points in it, those of its own segment. CheckpointError as in
    `checkpoint.load_newest`.

    Args:
        at_most: images seen beyond which none is used.
        identity: identity of the training in the folder; by default this training's.
    """
    workers = state.workers
    tensors: dict[str, Tensor] = {}
    wanted = {f"model/{name}": value.shape for name, value in state.model.state_dict().items()}
    wanted |= {f"ema/{name}": value.shape for name, value in state.ema.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        wanted |= {f"optimizer/{key}/{name}": torch.Size() if key == "step" else parameter.shape for key in MOMENTS}

    def read() -> dict[str, Any] | None:
        found = checkpoint.load_newest(folder, identity=identity or state.spec.identity, at_most=at_most)
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

    meta = workers.first_does(read)  # an error is raised by all workers, so that none waits for a tensor
    if meta is None:
        return []
    for parameter in state.model.parameters():
        # AdamW keeps its step counter on the CPU.
        state.optimizer.state[parameter] = {
            key: torch.zeros(()) if key == "step" else torch.zeros_like(parameter) for key in MOMENTS
        }
    for name, target in state_tensors(state).items():
        put(target, tensors.get(name), workers)
    state.stream.load_state_dict(meta["stream"])
    state.step, state.seconds, state.device_seconds = meta["step"], meta["seconds"], meta["device_seconds"]
    state.window = Window(meta["window"]["rows"], meta["window"]["seconds"])
    modulation = meta.get("modulation", {"nodes": None, "error": 0.0})  # of a checkpoint made before there were nodes
    state.model.modulation_nodes, state.modulation_error = modulation["nodes"], modulation["error"]
    return [Record(**point) for point in meta["curve"]]


class Mirror(Protocol):
    """A copy of a training's folder elsewhere, such as in a bucket."""

    def pull(
        self, at_most: int
    ) -> None: ...  # into the folder: the curve, and the newest checkpoint up to so many images seen
    def push(self, path: Path) -> None: ...  # a checkpoint or segment; a failure does not stop the training


Published = Callable[[TrainState, dict[str, Tensor], dict[str, Any]], None]
"""Callback on the first worker when a snapshot is on disk; gets its tensors by name (`ema/…`, `model/…`) and its
meta."""


class Checkpoints(Callback):
    """Resumes at the start, saves a checkpoint every `checkpoint_every` steps, and snapshots at the requested images
    seen.

    Args:
        folder: folder of the training.
        until: images seen at the end, where a snapshot is always taken; by default, the configuration's budget.
        snapshots: images seen of further snapshots.
        resumable: images seen of snapshots that a training can resume from for good.
        published: called for each snapshot.
        admit: called before a snapshot is written: whether it may be, as another one may be there already.
        mirror: copy of the folder elsewhere.
        guard: called before anything is written; raises where another process has taken the training over.
        begin: called by all workers where the folder has nothing to resume from.
        wanted: names of files by which other processes ask for snapshots meanwhile.
        answered: called when such a snapshot is there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        until: int | None = None,
        snapshots: Iterable[int] = (),
        resumable: Iterable[int] = (),
        published: Published = lambda state, tensors, meta: None,
        admit: Callable[[TrainState, dict[str, Tensor]], bool] = lambda state, tensors: True,
        mirror: Mirror | None = None,
        guard: Callable[[], None] = lambda: None,
        begin: Callable[[TrainState], None] = lambda state: None,
        wanted: Callable[[], Iterable[str]] = lambda: (),
        answered: Callable[[int], None] = lambda images_seen: None,
    ) -> None:
        self.folder, self.until, self.published, self.mirror = folder, until, published, mirror
        self.guard, self.begin, self.admit = guard, begin, admit
        self.wanted, self.answered = wanted, answered
        self.resumable = set(resumable)
        self.targets = {*self.resumable, *snapshots}
        self.taken: set[int] = set()
        self.saved = -1
        """Step of the last checkpoint or snapshot written; −1 before."""
        self.saved_at = time.monotonic()
        """Time of the last checkpoint, snapshot or start, on the clock of `time.monotonic`."""

    def on_start(self, state: TrainState) -> None:
        workers = state.workers
        self.end = state.spec.training.images if self.until is None else self.until
        self.targets.add(self.end)
        if workers.first:
            checkpoint.remove_partial(self.folder)
        if self.mirror is not None:
            mirror = self.mirror
            workers.first_does(lambda: mirror.pull(self.end))
        points, self.saved_at = restore(state, self.folder, at_most=self.end), time.monotonic()
        if state.step == 0:
            self.begin(state)
        self.retention = checkpoint.Retention(self.folder, state.spec.identity)

        def look() -> set[int]:
            # The process that wrote the checkpoint may have been killed before it wrote the segment.
            self._segment(points)
            return self._wanted(state)

        self.targets |= workers.first_does(look)

    def on_step(self, state: TrainState) -> None:
        if state.images_seen in self.targets:
            self._save(state, snapshot=True)
        elif state.step % state.spec.training.checkpoint_every == 0:
            self._save(state, snapshot=False)
        elif state.workers.first and self._is_late(state.spec.training.checkpoint_minutes):
            state.answer = max(state.answer, Answer.CHECKPOINT)  # which all workers get for one and the same step

    def _is_late(self, minutes: float | None) -> bool:
        """Whether the last checkpoint is so many minutes old."""
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    def on_checkpoint(self, state: TrainState) -> None:
        if self.saved != state.step or (state.images_seen in self.taken and not self._goes_on_from(state)):
            self._save(state, snapshot=False)

    def _goes_on_from(self, state: TrainState) -> bool:
        """Whether a training can resume from a snapshot of this step."""
        return state.images_seen == self.end or state.images_seen in self.resumable

    def on_end(self, state: TrainState) -> None:
        if state.images_seen not in self.taken:  # everything had been trained already, and saved as a checkpoint
            self._save(state, snapshot=True)

    def _wanted(self, state: TrainState) -> set[int]:
        """Images seen at which other processes have asked for snapshots meanwhile."""
        return checkpoint.targets_in(self.wanted(), batch=state.spec.training.batch)

    def _segment(self, points: Sequence[Record]) -> None:
        path = write_segment(self.folder, points)
        if path is not None and self.mirror is not None:
            self.mirror.push(path)

    def _save(self, state: TrainState, *, snapshot: bool) -> None:
        workers, images = state.workers, state.images_seen
        # Nothing that is not finite is saved, including the steps of an open window.
        state.window.settle(state)
        require_finite(state)
        # All workers have just ended a step, so one that does not arrive hangs: the training's timeout applies.
        streams = workers.gather(state.stream.state_dict(), patient=False)
        meta = {
            "identity": state.spec.identity,
            "step": state.step,
            "images_seen": images,
            "seconds": state.seconds,
            "device_seconds": state.device_seconds,
            "stream": state.stream.merge(streams),
            "workers": workers.count,
            "window": {"rows": state.window.rows, "seconds": state.window.seconds},
            "curve": [point._asdict() for point in state.curve],
            "modulation": {"nodes": state.model.modulation_nodes, "error": state.modulation_error},
            "keep": images in self.resumable,
            "torch": torch.__version__,
        }
        resumable = not snapshot or self._goes_on_from(state)
        tensors: dict[str, Tensor] = {}
        for name, tensor in state_tensors(state).items():
            if resumable or not name.startswith(checkpoint.OPTIMIZER):
                full = whole(tensor)  # all workers take part where it is sharded
                if workers.first:
                    tensors[name] = full.cpu()

        def write() -> set[int]:
            self.guard()
            if snapshot and not self.admit(state, tensors):
                return self._wanted(state)
            path = snapshot_path(self.folder, images) if snapshot else checkpoint_path(self.folder, state.step)
            checkpoint.save(path, tensors, meta, resumable=resumable)
            self.retention.trust(path)
            self._segment(state.curve)
            if self.mirror is not None:
                self.mirror.push(path)
            if snapshot:
                self.published(state, tensors, meta)
                self.answered(images)
            self.retention.apply(images)
            return self._wanted(state)

        # All workers learn of a full disk or a lost folder at once, so that none waits in the next step.
        self.targets |= workers.first_does(write)
        self.taken |= {images} if snapshot else set()
        self.saved, self.saved_at = state.step, time.monotonic()
        state.curve = []


class OnRecord(Callback):
    """Passes every point of the curve to a function."""

    def __init__(self, function: Callable[[Record], None]) -> None:
        self.function = function

    def on_record(self, state: TrainState, record: Record) -> None:
        self.function(record)


class StepsOnly(Callback):
    """Passes steps and requested checkpoints to other callbacks, but no point of the curve: for a trunk that a branch
    trains first, whose curve is not the branch's."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_step(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.on_step(state)

    def on_checkpoint(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(state)
