"""The training loop, without Ray or MLflow.

Randomness does not depend on the number of workers: each step has a generator keyed by (seed, step), and every worker
draws the *global* batch's timesteps, noise, label drops and flips, and takes its rows. So k steps, a resume and n − k
steps equal n steps, bit for bit on a CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pforce import flow
from pforce.flow import FlowConfig
from pforce.images import from_uint8
from pforce.models import PatchForcingTransformer
from pforce.models.interpolation import NODES, TOLERANCE, TOLERANCE_BFLOAT16
from pforce.parallel import ALONE, Word, Workers
from pforce.timesteps import TimestepSampler, require_timesteps
from pforce.training.config import OptimizerConfig, Precision, TrainingConfig
from pforce.training.draws import Draws, draw
from pforce.training.ema import EMA
from pforce.training.outcome import Answer, Diverged, Stopped
from pforce.training.strategy import Forward, Sharding, local, make_forward, shard, whole
from pforce.training.window import Record, Window

CHECK_STEPS = 64
"""Steps between checks of interpolated modulations."""


class TrainingBatch(Protocol):
    """A worker's rows of a global batch."""

    @property
    def images(self) -> Tensor: ...  # (b, C, H, W) uint8
    @property
    def labels(self) -> Tensor: ...  # (b,) int64


class TrainingStream(Protocol):
    """A source of batches, in an order that does not depend on the number of workers."""

    @property
    def rows(self) -> Tensor: ...  # (b,) int64, this worker's rows in the global batch
    @property
    def damaged(self) -> dict[str, int]: ...  # damaged samples that were skipped, by shard
    def next_batch(self) -> TrainingBatch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]: ...  # of all workers


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that determines a training, except the model and the data."""

    timesteps: TimestepSampler
    flow: FlowConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    seed: int
    identity: str
    """Content hash of the training; a checkpoint of another training is refused."""

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step` (from 0). Over a decay of D steps it falls from the full rate in the first to
        1/D of it in the last."""
        rate, decay = self.optimizer.learning_rate_at(step), self.optimizer.decay_images // self.training.batch
        return rate * min(1.0, (self.training.steps - step) / decay) if decay else rate


@dataclass
class TrainState:
    """The state of a training in progress, as checkpoints hold it and callbacks see it."""

    spec: TrainingSpec
    model: PatchForcingTransformer
    ema: EMA[PatchForcingTransformer]
    optimizer: torch.optim.AdamW
    stream: TrainingStream
    device: torch.device
    workers: Workers = ALONE
    devices: float = 1.0
    """Devices (on a CPU: cores) that this training occupies, over all workers."""
    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Seconds spent in these steps, over all resumes."""
    device_seconds: float = 0.0
    """Device-seconds: seconds × devices, summed over resumes."""
    window: Window = field(default_factory=Window)
    curve: list[Record] = field(default_factory=list)
    """Points of the loss curve since the last checkpoint."""
    modulation_error: float = 0.0
    """Largest relative error of interpolated modulations when they were last checked."""
    answer: Answer = Answer.GO_ON
    """Answer that a callback of the first worker got; all workers act on it at the end of the same step."""

    @property
    def images_seen(self) -> int:
        """Images seen in the steps done."""
        return self.step * self.spec.training.batch

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16."""
        return use_bfloat16(self.spec.training.precision, self.device)


class Callback:
    """Hooks of the loop. Override those that are needed."""

    def on_start(self, state: TrainState) -> None:
        """Called before the first step, also after a resume."""

    def on_record(self, state: TrainState, record: Record) -> None:
        """Called every `log_every` steps; all losses so far are finite."""

    def on_step(self, state: TrainState) -> None:
        """Called after every step, and after its record."""

    def on_checkpoint(self, state: TrainState) -> None:
        """Called on all workers, after `on_step`, where a checkpoint is asked for at this step."""

    def on_end(self, state: TrainState) -> None:
        """Called after the last step; losses and weights are finite."""

    def on_exit(self) -> None:
        """Called when the training has ended, however it ended."""


class _AdamW(torch.optim.AdamW):
    """torch's AdamW without the decorators that exclude its methods from compilation.

    At their first call these decorators import torch's compiler, which takes a second in every process, and nothing
    here compiles an optimiser. The methods are torch's own.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)


def new_state(
    spec: TrainingSpec,
    model: PatchForcingTransformer,
    stream: TrainingStream,
    device: torch.device,
    *,
    workers: Workers = ALONE,
    sharding: Sharding = "none",
    devices: float = 1.0,
) -> TrainState:
    """A training at step 0, with the same weights on every worker.

    Args:
        sharding: fsdp shards weights, averages and moments over the workers; it has no effect with one worker.
        devices: as in `TrainState`.
    """
    model = model.to(device).train()
    ema = EMA(model, decay=spec.training.ema_decay, warmup=spec.training.ema_warmup)
    if sharding == "fsdp" and workers.count > 1:
        shard(model, workers, device)
        shard(ema.model, workers, device)
    optimizer = _AdamW(
        model.parameters(),
        lr=spec.optimizer.learning_rate,
        betas=spec.optimizer.betas,
        weight_decay=spec.optimizer.weight_decay,
    )
    return TrainState(spec, model, ema, optimizer, stream, device, workers, devices)


def use_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether to autocast to bfloat16; `auto` does on a GPU that computes in bfloat16."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


@torch.no_grad()
def require_finite(state: TrainState) -> None:
    """Raise Diverged where a weight or an averaged weight is not finite, as a loss is computed before its update. All
    workers must call it."""
    for name, model in (("weights", state.model), ("averaged weights", state.ema.model)):
        parts = [local(value) for value in model.parameters()]
        finite = torch.stack([part.isfinite().all() for part in parts]).all()
        # Each worker may hold another part; all learn of it at once.
        if state.workers.mean(finite.float().reshape(1)).item() < 1:
            raise Diverged(state.step, f"{name} are not finite")


def train(
    state: TrainState, *, until: int | None = None, flip: bool = False, callbacks: Sequence[Callback] = ()
) -> None:
    """Train from `state.step` until the budget is spent. Diverged where the loss or a weight is not finite, Stopped
    where a callback got that answer; all workers raise both at the same step.

    Args:
        until: images seen at which to end; by default, the configuration's budget.
    """
    end = (state.spec.training.images if until is None else until) // state.spec.training.batch
    try:
        for callback in callbacks:
            callback.on_start(state)
        _run(state, end, flip, callbacks)
        for callback in callbacks:
            callback.on_end(state)
    finally:
        for callback in callbacks:
            callback.on_exit()


def _run(state: TrainState, end: int, flip: bool, callbacks: Sequence[Callback]) -> None:
    training = state.spec.training
    forward = make_forward(state.model, state.workers, compiled=training.compile)
    word = Word(state.workers)
    state.window.begin()
    while state.step < end:
        if check_is_due(state.step) or state.model.modulation_nodes is None:
            check_modulation(state)
        state.window.add(_step(state, forward, flip))
        state.step += 1
        if state.step == end:
            # A loss is computed before its update: a weight that the last update spoiled shows only here.
            state.window.settle(state)
            require_finite(state)
        if state.step % training.log_every == 0:
            record = state.window.close(state)
            state.curve.append(record)
            for callback in callbacks:
                callback.on_record(state, record)
        for callback in callbacks:
            callback.on_step(state)
        answer, state.answer = Answer(word.pass_on(state.answer)), Answer.GO_ON
        if answer is not Answer.GO_ON and state.step < end:
            for callback in callbacks:
                callback.on_checkpoint(state)
            if answer is Answer.CHECKPOINT_AND_STOP:
                word.end()
                raise Stopped(f"stopped at {state.images_seen:,} images seen")
    word.end()


def check_is_due(step: int) -> bool:
    """Whether interpolated modulation is checked before this step."""
    return step % CHECK_STEPS == 0 or step & (step - 1) == 0


def check_modulation(state: TrainState) -> None:
    """Use so many nodes for interpolated modulation as agree with exact modulations. All workers must call it.

    It is called at the start, after 1, 2, 4, …, 64 steps and every 64 from there, whatever the checkpoints, so that a
    resumed training makes the same decisions: embeddings of timesteps grow in spurts. Nodes are never removed.
    """
    model, workers = state.model, state.workers
    fewest = NODES[0] if model.modulation_nodes is None else model.modulation_nodes
    model.modulation_nodes, state.modulation_error = model.fit_modulation(
        0 if state.spec.timesteps.per_sample else fewest,
        tolerance=TOLERANCE_BFLOAT16 if state.bfloat16 else TOLERANCE,
        gather=whole,
        agree=lambda error: workers.mean(torch.tensor([error], device=state.device)).item(),
    )


def _step(state: TrainState, forward: Forward, flip: bool) -> Tensor:
    """Take one optimiser step; returns (4,): loss, mse, nll and gradient norm."""
    spec, device = state.spec, state.device
    for group in state.optimizer.param_groups:
        group["lr"] = spec.learning_rate_at(state.step)
    with state.window.usage.waiting():
        batch = state.stream.next_batch()
    rows = state.stream.rows.to(device)
    drawn = draw(spec, state.model, state.step, device)
    if check_is_due(state.step):
        require_timesteps(drawn.t, spec.timesteps.name)  # a user's sampler may draw anything
    draws = Draws(*(values[rows] for values in drawn))
    x1 = from_uint8(batch.images.to(device, non_blocking=True))
    if flip:
        x1 = torch.where(draws.flip[:, None, None, None], x1.flip(-1), x1)
    y = torch.where(draws.drop, state.model.null_class, batch.labels.to(device, non_blocking=True))
    t = draws.t[:, 0] if spec.timesteps.per_sample else draws.t
    state.optimizer.zero_grad(set_to_none=True)
    parts: list[Tensor] = []
    micros = torch.arange(len(rows), device=device).chunk(spec.training.accumulation)
    for micro in micros:
        # Gradients are averaged over the workers once, in the last backward pass.
        with forward.synchronise(len(parts) + 1 == len(micros)):
            with _autocast(spec.training.precision, device):
                losses = flow.loss(
                    forward,
                    x1[micro],
                    y[micro],
                    t[micro],
                    draws.x0[micro],
                    difficulty_weight=spec.flow.difficulty_weight,
                )
            share = len(micro) / len(rows)
            (losses.total * share).backward()
        parts.append(torch.stack(losses).detach() * share)
    norm = whole(torch.nn.utils.clip_grad_norm_(state.model.parameters(), spec.optimizer.gradient_norm))
    state.optimizer.step()
    state.ema.update(state.model, state.step)
    return torch.cat([torch.stack(parts).sum(dim=0), norm.detach().reshape(1)])


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16(precision, device))
