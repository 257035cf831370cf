"""Check that models and samplers are right on a GPU, and compare their speed with ceilings measured in the same run.

    python analysis/gpu_check.py --output analysis/results/gpu_check.json
    python analysis/gpu_check.py --small --output /tmp/x.json          the same path on a CPU, in seconds

Needs the core only (torch, safetensors, scipy, pillow, rich; no Ray, MLflow, webdataset or pydantic). Images are random
bytes: this measures speed and agreement, not quality.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pforce import flow, seeding
from pforce.flow import FlowConfig
from pforce.models import ModelConfig, TimestepLevels, build, sized
from pforce.sampling import SAMPLERS, Guidance, generate
from pforce.timesteps import LTG
from pforce.training import OnRecord, OptimizerConfig, Record, TrainingConfig, TrainingSpec, new_state, train


class Images(NamedTuple):
    """A batch of random bytes."""

    images: Tensor
    labels: Tensor


class RandomStream:
    """One batch, repeated and kept on the device: it shows the speed of the loop itself, without a reader."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device) -> None:
        generator = seeding.generator("gpu_check", 0)
        shape = (batch, config.channels, *config.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, config.classes, (batch,), generator=generator)
        self.batch = Images(images.to(device), labels.to(device))
        self.rows = torch.arange(batch)
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


def ceilings(device: torch.device, side: int) -> dict[str, float]:
    """Speed of matrix products in bf16 and f32 (TFLOP/s), and bandwidth of a copy (GB/s): medians of 20."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=device, dtype=dtype)
        seconds = median(partial(torch.matmul, a, a), device)
        found[f"matmul_{str(dtype).removeprefix('torch.')}_tflops"] = 2 * side**3 / seconds / 1e12
    source = torch.empty(side * side * 8, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    found["copy_gb_per_second"] = 2 * source.numel() / median(lambda: target.copy_(source), device) / 1e9
    return found


def median(function: Any, device: torch.device, rounds: int = 20) -> float:
    """Median seconds per call."""
    seconds: list[float] = []
    for number in range(rounds + 3):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[rounds // 2]


@torch.no_grad()
def agreement(device: torch.device) -> dict[str, float]:
    """Largest differences of velocities: device and CPU, two levels and per-token timesteps, compiled and eager."""
    config = ModelConfig(depth=3, width=128, heads=4, patch=2, image_size=(16, 16), channels=3, classes=10)
    model = build(config, generator=seeding.generator("agreement"))
    for parameter in model.parameters():
        parameter.add_(
            torch.randn(parameter.shape, generator=seeding.generator("noise", parameter.numel())), alpha=0.02
        )
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8)
    levels = TimestepLevels(torch.rand(8, 2), torch.randint(0, 2, (8, config.patches)))
    on_cpu = model(x, levels, y).velocity
    model = model.to(device)
    x, y = x.to(device), y.to(device)
    levels = TimestepLevels(levels.values.to(device), levels.index.to(device))
    per_token = levels.values.gather(1, levels.index)
    shared = model(x, levels, y).velocity
    found = {
        "device_against_cpu_float32": (shared.cpu() - on_cpu).abs().max().item(),
        "levels_against_per_token_float32": (shared - model(x, per_token, y).velocity).abs().max().item(),
    }
    with torch.autocast(device.type, dtype=torch.bfloat16):
        half = model(x, levels, y).velocity
        found["levels_against_per_token_bfloat16"] = (half - model(x, per_token, y).velocity).abs().max().item()
    compiled = torch.compile(model, fullgraph=True)
    found["compiled_against_eager_float32"] = (compiled(x, levels, y).velocity - shared).abs().max().item()
    return found


def solvers_agree(device: torch.device) -> dict[str, float]:
    """Largest difference of each solver's guided images between the compiled model (CUDA graphs on a GPU) and eager.

    It shows that solvers read no evaluation after the next one, which overwrites it in a CUDA graph.
    """
    config = ModelConfig(depth=2, width=128, heads=4, patch=2, image_size=(16, 16), channels=3, classes=10)
    model = build(config, generator=seeding.generator("solvers")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=seeding.generator("noise", parameter.numel()))
            parameter.add_(noise, alpha=0.02)
    eager, compiled = model.to(device), copy.deepcopy(model).to(device)
    compiled.compile(mode="reduce-overhead", dynamic=False, fullgraph=True)
    labels, found = torch.arange(8), {}
    for name, make in SAMPLERS.items():
        sampler = make(8, Guidance(1.5))
        first, second = (
            torch.cat([g.images.clone() for g in generate(m, sampler, labels, seed=0, batch=8, device=device)])
            for m in (eager, compiled)
        )
        found[name] = (first - second).abs().max().item()
    return found


def flops_per_image(config: ModelConfig) -> float:
    """Counted floating-point operations per image, of forward and backward pass."""
    model = build(config)
    x, y = torch.randn(1, config.channels, *config.image_size), torch.zeros(1, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with counter:
        flow.loss(model, x, y, torch.rand(1, config.patches), torch.randn_like(x)).total.backward()
    return float(counter.get_total_flops())


def throughput(
    config: ModelConfig, batch: int, device: torch.device, *, compile_model: bool, steps: int
) -> dict[str, Any]:
    """Images per second of the real loop (EMA, clipping, AdamW), from the last of three records, and its losses."""
    training = TrainingConfig(
        images=3 * steps * batch, batch=batch, compile=compile_model, log_every=steps, ema_decay=0.999
    )
    spec = TrainingSpec(LTG(), FlowConfig(), OptimizerConfig(warmup_steps=10), training, seed=0, identity="gpu_check")
    model = build(config, generator=seeding.generator("weights", 0))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    records: list[Record] = []
    state = new_state(spec, model, RandomStream(config, batch, device), device)
    train(state, callbacks=[OnRecord(records.append)])
    rate = records[-1].images_per_second
    return {
        "images_per_second": rate,
        "tflops": rate * flops_per_image(config) / 1e12,
        "losses": [record.loss for record in records],
        "peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }


def main() -> None:
    """Run everything, and write the JSON after each part, so that an interrupted run keeps what it measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="the same path at tiny sizes, for a CPU, in seconds")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "small": arguments.small,
    }

    def keep(name: str, value: Any) -> None:
        result[name] = value
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(value), flush=True)

    keep("ceilings", ceilings(device, 512 if arguments.small else 8192))
    keep("agreement", agreement(device))
    micro = sized("micro", patch=4, image_size=(32, 32), channels=3, classes=11)
    small = sized("S", patch=4, image_size=(64, 64), channels=3, classes=11)
    cases = {"S/4 64x64x3": (small, 128), "XL/2 32x32x4": (sized("XL", patch=2), 64)}
    cases |= {"B/2 32x32x4": (sized("B", patch=2), 256), "L/2 32x32x4": (sized("L", patch=2), 128)}
    cases["micro 32x32x3"] = (micro, 64)
    if arguments.small:
        cases = {"micro": (replace(micro, depth=1), 16)}
    for compiled in (True, False):  # the longest and most telling first, in case the time ends
        for name, (config, batch) in cases.items():
            case = throughput(config, batch, device, compile_model=compiled, steps=2 if arguments.small else 30)
            case["share_of_bfloat16_matmul"] = case["tflops"] / result["ceilings"]["matmul_bfloat16_tflops"]
            keep(f"training {name} batch {batch}{' compiled' if compiled else ''}", case)
    keep("compiled_solvers", solvers_agree(device))


if __name__ == "__main__":
    main()
