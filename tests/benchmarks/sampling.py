"""Samplers of PFT against plain SiT, random weights, in one run: time per forward pass, as interleaved pairs.

Each round times every PFT sampler between two SiT samplings and divides by their mean, so that a drifting machine
drifts for both. On a GPU: bf16 autocast, with and without torch.compile. Prints a table; --json writes it.

    python -m tests.benchmarks.sampling                 # B/2, batch 4, 20 rounds
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import nn

from pforce.base.console import make_console
from pforce.models import PatchForcingTransformer, build, sized
from pforce.sampling import DualLoop, Euler, LookAhead, Sampler, count_flops, generate

RESAMPLES = 2000


def awake(model: PatchForcingTransformer, device: torch.device) -> PatchForcingTransformer:
    """Random weights everywhere: a fresh model answers zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model.eval().to(device)


def timed(model: nn.Module, config: Sampler, batch: int, device: torch.device) -> float:
    """Seconds a forward pass of one sampling."""
    labels = torch.arange(batch)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with autocast:
        (generated,) = generate(model, config, labels, seed=0, batch=batch, device=device)  # type: ignore[arg-type]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / generated.forward_passes


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def measure(a: argparse.Namespace, *, compiled: bool, device: torch.device) -> list[dict[str, object]]:
    """A row a sampler."""
    sit, pft = (awake(build(sized(a.size, difficulty_head=head)), device) for head in (False, True))
    plain = Euler(a.nfe)
    configs = {
        "PFT euler": plain,
        "PFT dual_loop (K = 4)": DualLoop(a.nfe),
        "PFT look_ahead": LookAhead(a.nfe),
    }
    if compiled:
        for model in (sit, pft):
            model.compile(mode=a.compile_mode, dynamic=False)
    for config in configs.values():  # warm up, and compile
        timed(pft, config, a.batch, device)
    timed(sit, plain, a.batch, device)
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    ratios: dict[str, list[float]] = {name: [] for name in configs}
    before = timed(sit, plain, a.batch, device)
    baseline = [before]
    for _ in range(a.rounds):
        for name, config in configs.items():
            found = timed(pft, config, a.batch, device)
            after = timed(sit, plain, a.batch, device)
            seconds[name].append(found)
            ratios[name].append(found / ((before + after) / 2))
            before = after
            baseline.append(after)
    rows: list[dict[str, object]] = [
        {"sampler": "SiT euler", "ms": 1e3 * float(np.median(baseline)), "ratio": 1.0, "low": 1.0, "high": 1.0,
         "n": len(baseline), "compiled": compiled, "gflops": count_flops(sit.config, plain) / 1e9 / a.nfe}
    ]  # fmt: skip
    for name, config in configs.items():
        low, high = interval(np.array(ratios[name]))
        spent = config.schedule().num_function_evaluations
        rows.append({
            "sampler": name, "ms": 1e3 * float(np.median(seconds[name])), "ratio": float(np.median(ratios[name])),
            "low": low, "high": high, "n": a.rounds, "compiled": compiled,
            "gflops": count_flops(pft.config, config) / 1e9 / spent,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--nfe", type=int, default=8, help="function evaluations of a sampling")
    parser.add_argument("--size", default="B")
    parser.add_argument("--compile-mode", default="reduce-overhead", help="of torch.compile, on a GPU")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure(a, compiled=False, device=device)
    if device.type == "cuda":
        rows += measure(a, compiled=True, device=device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    title = f"{a.size}/2, batch {a.batch}, {a.nfe} NFE, {name}, {versions}"
    table = Table(title=title, title_justify="left")
    for header in (
        "sampler",
        "compiled",
        "ms a pass",
        "ratio to SiT",
        "95 % interval",
        "pairs",
        "GFLOPs a pass, image",
    ):
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(str(row["sampler"]), str(row["compiled"]), f"{row['ms']:.1f}", f"{row['ratio']:.3f}",
                      f"{row['low']:.3f} … {row['high']:.3f}", str(row["n"]), f"{row['gflops']:.2f}")  # fmt: skip
    make_console(width=140).print(table)
    if a.json:
        a.json.write_text(json.dumps({"title": title, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
