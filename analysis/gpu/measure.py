"""What the GPU queue measures: ceilings, training and sampling speed, agreement of paths that must be equal."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pforce import flow, seeding
from pforce.flow import FlowConfig
from pforce.models import ModelConfig, PatchForcingTransformer, TimestepLevels, build
from pforce.sampling import SAMPLERS, Guidance, generate
from pforce.timesteps import LTG, ParallelUniform
from pforce.training import Callback, OnRecord, OptimizerConfig, Record, TrainingConfig, TrainingSpec, new_state, train
from pforce.training.loop import TrainState, check_is_due
from pforce.training.strategy import compile_blocks, compiler_problem


class Images(NamedTuple):
    """A batch of random bytes."""

    images: Tensor
    labels: Tensor


class RandomStream:
    """One batch, repeated and kept on the device: it shows the speed of the loop itself, without a reader."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device) -> None:
        generator = seeding.generator("gpu_queue", 0)
        shape = (batch, config.channels, *config.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, config.classes, (batch,), generator=generator)
        self.batch = Images(images.to(device), labels.to(device))
        self.rows = torch.arange(batch, device=device)
        self.damaged: dict[str, int] = {}

    def next_batch(self) -> Images:
        """The batch."""
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        """Return no state: every batch is the same."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""

    def merge(self, states: Any) -> dict[str, Any]:
        """Return no state: there is nothing to merge."""
        return {}


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(function: Callable[[], object], device: torch.device, rounds: int = 20) -> float:
    """Median seconds per call, after three calls that are not counted."""
    seconds: list[float] = []
    for number in range(rounds + 3):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[rounds // 2]


def ceilings(device: torch.device, side: int) -> dict[str, float]:
    """Speed of matrix products in bf16 and f32 (TFLOP/s), and bandwidth of a copy (GB/s): medians of 20."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=device, dtype=dtype)
        seconds = median(lambda a=a: torch.matmul(a, a), device)
        found[f"matmul_{str(dtype).removeprefix('torch.')}_tflops"] = 2 * side**3 / seconds / 1e12
    source = torch.empty(side * side * 8, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    found["copy_gb_per_second"] = 2 * source.numel() / median(lambda: target.copy_(source), device) / 1e9
    return found


def awake(config: ModelConfig, device: torch.device) -> PatchForcingTransformer:
    """A model in eval mode whose zero-initialised layers are random too: a fresh one answers zero."""
    model = build(config, generator=seeding.generator("weights", 0)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=seeding.generator("noise", number)), alpha=0.02)
    return model.to(device)


# --- speed -----------------------------------------------------------------------------------------------------------


def flops_per_image(config: ModelConfig) -> float:
    """Counted floating-point operations per image, of forward and backward pass, with the modulation that the
    configuration asks for (8 nodes where interpolated)."""
    with torch.device("meta"):
        model = PatchForcingTransformer(config)
        x, y = torch.randn(1, config.channels, *config.image_size), torch.zeros(1, dtype=torch.int64)
        t = torch.rand(1, config.patches) if config.difficulty_head else torch.rand(1)
    model.modulation_nodes = 8 if config.modulation == "interpolated" else 0
    with FlopCounterMode(display=False) as counter:
        flow.loss(model, x, y, t, torch.randn_like(x)).total.backward()
    return float(counter.get_total_flops())


UNSEEN = Callback()


def throughput(
    config: ModelConfig, batch: int, device: torch.device, *, compiled: bool, steps: int, callback: Callback = UNSEEN
) -> dict[str, Any]:
    """Images per second of the real loop (EMA, clipping, AdamW), from the last of three points, and its losses."""
    training = TrainingConfig(images=3 * steps * batch, batch=batch, compile=compiled, log_every=steps, ema_decay=0.999)
    timesteps = LTG() if config.difficulty_head else ParallelUniform()
    spec = TrainingSpec(timesteps, FlowConfig(), OptimizerConfig(warmup_steps=10), training, seed=0, identity="queue")
    with torch.device(device):  # a large model is initialised on the GPU in a fraction of the time
        model = PatchForcingTransformer(config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    points: list[Record] = []
    state = new_state(spec, model, RandomStream(config, batch, device), device)
    train(state, callbacks=[OnRecord(points.append), callback])
    rate = points[-1].images_per_second
    return {
        "batch": batch,
        "images_per_second": rate,
        "tflops": rate * flops_per_image(config) / 1e12,
        "losses": [point.loss for point in points],
        "modulation_nodes": points[-1].modulation_nodes,
        "peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
        "compiled": compiled and not compiler_problem(device),
    }


def largest_batch(
    config: ModelConfig, batch: int, device: torch.device, *, compiled: bool, steps: int
) -> dict[str, Any]:
    """`throughput` with the largest batch that fits, halved from the one given."""
    while True:
        try:
            return throughput(config, batch, device, compiled=compiled, steps=steps)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2
        torch.cuda.empty_cache()


class NoWaiting(Callback):
    """Makes every wait for the GPU an error, between the points of the curve."""

    def on_step(self, state: TrainState) -> None:
        """Allow waiting in the steps that end with a point, and in those that check modulations."""
        if state.device.type != "cuda":
            return
        following = state.step + 1
        waits = following % state.spec.training.log_every == 0 or check_is_due(state.step)
        torch.cuda.set_sync_debug_mode("default" if waits else "error")

    def on_exit(self) -> None:
        """Allow waiting again."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def sampling_speed(
    config: ModelConfig, batch: int, nfe: int, device: torch.device, *, compiled: bool
) -> dict[str, Any]:
    """Images per second of each solver, bf16 autocast, blocks compiled; and of as many forwards of the plain SiT."""
    pft, sit = awake(config, device), awake(replace(config, difficulty_head=False), device)
    for model in (pft, sit) if compiled else ():
        compile_blocks(model)
    x, y = torch.randn(batch, config.channels, *config.image_size, device=device), torch.arange(batch, device=device)
    t = torch.full((batch,), 0.4, device=device)
    found: dict[str, Any] = {"batch": batch, "nfe": nfe}
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found["SiT forward"] = batch / nfe / median(lambda: sit(x, t, y % config.classes), device, rounds=8)
        for name, make in SAMPLERS.items():
            sampler = make(nfe)
            seconds = median(lambda s=sampler: s.sample(pft, x, y % config.classes, seed=0, first=0), device, rounds=2)
            found[name] = batch / seconds
            spent = sampler.schedule().num_function_evaluations / nfe
            found[f"{name} / SiT"] = found[name] / found["SiT forward"] * spent
    return found


# --- agreement -------------------------------------------------------------------------------------------------------

AGREEMENT = ModelConfig(depth=3, width=128, heads=2, patch=2, image_size=(16, 16), channels=3, classes=10)
"""A model of three blocks with 64 tokens of 128 channels, 64 per head."""


@torch.no_grad()
def agreement(device: torch.device, *, compiled: bool) -> dict[str, float]:
    """Largest differences of velocities: device and CPU, levels, nodes and exact modulation, bf16, compiled."""
    model = awake(AGREEMENT, torch.device("cpu"))
    x, y = torch.randn(8, 3, 16, 16, generator=seeding.generator("x")), torch.arange(8)
    levels = TimestepLevels(torch.rand(8, 2), torch.randint(0, 2, (8, AGREEMENT.patches)))
    on_cpu = model(x, levels, y).velocity
    model, x, y = model.to(device), x.to(device), y.to(device)
    levels = TimestepLevels(levels.values.to(device), levels.index.to(device))
    per_patch = levels.values.gather(1, levels.index)
    exact = copy.deepcopy(model)
    exact.modulation_nodes = 0
    truth = exact(x, per_patch, y).velocity

    def apart(found: Tensor) -> float:
        return float((found.float() - truth).abs().max())

    found = {
        "float32: device, CPU": apart(on_cpu.to(device)),
        "float32: levels, exact": apart(model(x, levels, y).velocity),
        "float32: nodes, exact": apart(model(x, per_patch, y).velocity),
    }
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found["exact: bfloat16, float32"] = apart(exact(x, per_patch, y).velocity)
        found["nodes: bfloat16, float32"] = apart(model(x, per_patch, y).velocity)
    if compiled and not compiler_problem(device):
        compile_blocks(model)
        found["nodes: compiled, float32"] = apart(model(x, per_patch, y).velocity)
    return found


def flash_agrees(device: torch.device) -> dict[str, Any]:
    """The check of flash attention on this device, for the head widths of the table of sizes."""
    from pforce.models.attention import flash_attention, flash_package, largest_difference

    return {
        "package": flash_package(),
        **{f"width {width}": largest_difference(flash_attention(width), width, device) for width in (32, 64, 72)},
    }


@torch.no_grad()
def solvers_agree(device: torch.device, *, compiled: bool) -> dict[str, float]:
    """Largest difference of each solver's guided images between the compiled model (CUDA graphs on a GPU) and eager.

    It shows that solvers read no evaluation after the next one, which overwrites it in a CUDA graph.
    """
    eager = awake(AGREEMENT, device)
    other = copy.deepcopy(eager)
    if compiled:
        other.compile(mode="reduce-overhead", dynamic=False, fullgraph=True)
    labels, found = torch.arange(8), {}
    for name, make in SAMPLERS.items():
        sampler = make(8, Guidance(1.5))
        images = [
            torch.cat([g.images.clone() for g in generate(m, sampler, labels, seed=0, batch=8, device=device)])
            for m in (eager, other)
        ]
        found[name] = max((b - a).abs().max().item() for a, b in itertools.pairwise(images))
    return found
