"""The training loop: one file, no Ray, no MLflow.

Randomness does not know the number of workers: each step has a generator keyed by (seed, step), every worker
draws the *global* batch's timesteps, noise, label drops and flips, and takes its rows. So k steps, a resume
and n − k steps are n steps, bit for bit on a CPU.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pforce import flow, seeding
from pforce.flow import FlowConfig
from pforce.images import from_uint8
from pforce.models import PatchForcingTransformer
from pforce.parallel import ALONE, Workers
from pforce.timesteps import TimestepSampler
from pforce.training.config import OptimizerConfig, Precision, TrainingConfig
from pforce.training.ema import EMA
from pforce.training.strategy import Forward, Sharding, local, make_forward, shard, whole

CURVE_POINTS = 300


class Diverged(RuntimeError):
    """The loss, its gradient, or a weight is not finite. The last checkpoint is from before.

    Args:
        step: optimiser steps done.
        what: what was found: `the loss is nan`.
    """

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(f"the training diverged: at step {step} {what}")

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, str]]:
        return Diverged, (self.step, self.what)


class TrainingBatch(Protocol):
    """A worker's rows of a global batch."""

    @property
    def images(self) -> Tensor: ...  # (b, C, H, W) uint8
    @property
    def labels(self) -> Tensor: ...  # (b,) int64


class TrainingStream(Protocol):
    """Where batches come from, in an order that does not depend on the number of workers."""

    @property
    def rows(self) -> Tensor: ...  # (b,) int64, this worker's rows in the global batch
    @property
    def damaged(self) -> dict[str, int]: ...  # damaged samples that were skipped, by shard
    def next_batch(self) -> TrainingBatch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]: ...  # of all workers


class Record(NamedTuple):
    """A point of the loss curve: means over the steps since the last one."""

    step: int
    """Steps done."""
    images_seen: int
    loss: float
    mse: float
    nll: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    device_hours: float = 0.0
    """Of all devices, over all resumes."""


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that determines a training, but for the model and the data."""

    timesteps: TimestepSampler
    flow: FlowConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    seed: int
    identity: str
    """Content hash of the training; a checkpoint of another one is refused."""


@dataclass
class TrainState:
    """A training in progress: what a checkpoint holds, and what callbacks see."""

    spec: TrainingSpec
    model: PatchForcingTransformer
    ema: EMA[PatchForcingTransformer]
    optimizer: torch.optim.AdamW
    stream: TrainingStream
    device: torch.device
    workers: Workers = ALONE
    devices: float = 1.0
    """Devices that this training occupies, over all workers (on a CPU: cores)."""
    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time spent in those steps, over all resumes."""
    device_seconds: float = 0.0
    """The same times the devices of each."""
    curve: deque[Record] = field(default_factory=lambda: deque(maxlen=CURVE_POINTS))
    """The last points of the loss curve: a checkpoint holds them, because whoever recorded them may have been killed
    between the checkpoint and the record."""

    @property
    def images_seen(self) -> int:
        """Images of the steps done."""
        return self.step * self.spec.training.batch


class Callback:
    """Hooks of the loop. Override what is needed."""

    def on_start(self, state: TrainState) -> None:
        """Before the first step, after a resume."""

    def on_record(self, state: TrainState, record: Record) -> None:
        """At every `log_every` steps and at the end; the losses up to here are finite."""

    def on_end(self, state: TrainState) -> None:
        """After the last step."""

    def on_exit(self) -> None:
        """However the training ended."""


class _AdamW(torch.optim.AdamW):
    """torch's AdamW without the marks that keep its methods from being compiled.

    At their first call these marks import torch's compiler, a second of every process, and nothing here compiles an
    optimizer. The methods are torch's own, below the marks.
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
    """A training at step 0, of the same weights on every worker.

    Args:
        sharding: fsdp splits weights, averages and moments over the workers; with one worker there is nothing to split.
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
    """Whether to autocast; `auto` does on a GPU that computes in bfloat16."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


class Draws(NamedTuple):
    """A global batch's random numbers."""

    t: Tensor
    """(B, N) timesteps."""
    x0: Tensor
    """(B, C, H, W) noise."""
    drop: Tensor
    """(B,) bool: the label becomes the null class."""
    flip: Tensor
    """(B,) bool: the image is mirrored, where the data allow it."""


def draw(spec: TrainingSpec, model: PatchForcingTransformer, step: int, device: torch.device) -> Draws:
    """The random numbers of step `step`, the same on every worker."""
    config, batch = model.config, spec.training.batch
    generator = seeding.generator("training", spec.seed, step, device=device)
    return Draws(
        t=spec.timesteps(batch, config.patches, generator=generator, device=device),
        x0=torch.randn(batch, config.channels, *config.image_size, generator=generator, device=device),
        drop=torch.rand(batch, generator=generator, device=device) < config.class_dropout,
        flip=torch.rand(batch, generator=generator, device=device) < 0.5,
    )


class _Curve:
    """Losses since the last record, kept on the device so that a GPU is not made to wait at every step."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.since = time.perf_counter()

    def record(self, state: TrainState) -> Record:
        """Means since the last record. Diverged where one of the losses or gradients is not finite."""
        # (steps, 4): loss, mse, nll, gradient norm. Means over the workers, so that all see a divergence at once.
        rows = state.workers.mean(torch.stack(self.rows)).cpu().double()
        for offset, row in enumerate(rows):
            if not row.isfinite().all():
                told = f"the loss is {row[0].item()} and the gradient's norm {row[3].item()}"
                raise Diverged(state.step - len(rows) + offset + 1, told)
        seconds = time.perf_counter() - self.since
        batch, rate = state.spec.training.batch, state.spec.optimizer.learning_rate_at(state.step - 1)
        loss, mse, nll, norm = rows.mean(dim=0).tolist()
        state.seconds += seconds
        state.device_seconds += seconds * state.devices
        result = Record(
            state.step, state.images_seen, loss, mse, nll, norm, rate, len(rows) * batch / max(seconds, 1e-9),
            state.device_seconds / 3600,
        )  # fmt: skip
        self.rows, self.since = [], time.perf_counter()
        return result


@torch.no_grad()
def require_finite(state: TrainState) -> None:
    """Diverged where a weight or an average is not finite: a loss is of before its update. Asked by all workers."""
    for name, model in (("weights", state.model), ("averaged weights", state.ema.model)):
        parts = [local(value) for value in model.parameters()]
        finite = torch.stack([part.isfinite().all() for part in parts]).all()
        # Each worker may hold another part: all learn of it at once.
        if state.workers.mean(finite.float().reshape(1)).item() < 1:
            raise Diverged(state.step, f"{name} are not finite")


def train(state: TrainState, *, flip: bool = False, callbacks: Sequence[Callback] = ()) -> None:
    """Train until the budget is spent; continues at `state.step`. Diverged where the loss is not finite."""
    try:
        for callback in callbacks:
            callback.on_start(state)
        _run(state, flip, callbacks)
        for callback in callbacks:
            callback.on_end(state)
    finally:
        for callback in callbacks:
            callback.on_exit()


def _run(state: TrainState, flip: bool, callbacks: Sequence[Callback]) -> None:
    training = state.spec.training
    forward = make_forward(state.model, state.workers, compiled=training.compile)
    curve = _Curve()
    while state.step < training.steps:
        curve.rows.append(_step(state, forward, flip))
        state.step += 1
        if state.step % training.log_every == 0 or state.step == training.steps:
            record = curve.record(state)
            state.curve.append(record)
            if state.step == training.steps:
                require_finite(state)
            for callback in callbacks:
                callback.on_record(state, record)


def _step(state: TrainState, forward: Forward, flip: bool) -> Tensor:
    """One optimiser step; (4,) loss, mse, nll and gradient norm."""
    spec, device = state.spec, state.device
    for group in state.optimizer.param_groups:
        group["lr"] = spec.optimizer.learning_rate_at(state.step)
    batch = state.stream.next_batch()
    rows = state.stream.rows.to(device)
    draws = Draws(*(values[rows] for values in draw(spec, state.model, state.step, device)))
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
