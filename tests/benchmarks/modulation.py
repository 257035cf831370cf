"""What modulation costs: a training step and a forward of PFT with interpolated, exact and shared modulation, against
those of the plain SiT, interleaved in one run on one core.

    python -m tests.benchmarks.modulation --part training
    python -m tests.benchmarks.modulation --part forward --size B

Ratios to the SiT's median of the same run; medians and 5 … 95 %. Training: forward, backward and AdamW.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from pforce import flow
from pforce.models import ModelConfig, PatchForcingTransformer, TimestepLevels, build, sized
from tests.benchmarks.sampling import awake
from tests.benchmarks.timing import interleaved, spread

CPU = torch.device("cpu")
TRAINED = {
    "4 × 384, 256 tokens": (ModelConfig(depth=4, width=384, heads=6), 16),
    "micro, 64 tokens": (sized("micro", patch=4, channels=3, classes=11), 64),
}
"""Model and batch of the timed training steps."""


def step(model: PatchForcingTransformer, batch: int, *, per_patch: bool) -> Callable[[], None]:
    """One training step, to be called again and again."""
    config = model.config
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x1, x0 = torch.randn(2, batch, config.channels, *config.image_size)
    y = torch.randint(0, config.classes, (batch,))
    t = torch.rand(batch, config.patches) if per_patch else torch.rand(batch)

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        flow.loss(model, x1, y, t, x0).total.backward()
        optimizer.step()

    return one


def training(rounds: int) -> None:
    """Time training steps."""
    for name, (config, batch) in TRAINED.items():
        interpolated, exact = (awake(build(config), CPU) for _ in range(2))
        interpolated.modulation_nodes, exact.modulation_nodes = interpolated.fit_modulation()[0], 0
        more = copy.deepcopy(interpolated)
        more.modulation_nodes = 2 * interpolated.modulation_nodes
        sit = awake(build(replace(config, difficulty_head=False)), CPU)
        report(
            f"training step, {name}, batch {batch}",
            {
                "SiT": step(sit, batch, per_patch=False),
                f"PFT, {interpolated.modulation_nodes} nodes": step(interpolated, batch, per_patch=True),
                f"PFT, {more.modulation_nodes} nodes": step(more, batch, per_patch=True),
                "PFT, exact": step(exact, batch, per_patch=True),
            },
            rounds,
        )


@torch.inference_mode()
def forward(size: str, batch: int, rounds: int) -> None:
    """Time forwards, and compare their outputs."""
    pft, sit = (awake(build(sized(size, difficulty_head=head)), CPU) for head in (True, False))
    exact = copy.deepcopy(pft)
    pft.modulation_nodes, exact.modulation_nodes = pft.fit_modulation()[0], 0
    n = pft.config.patches
    x, y, t = torch.randn(batch, 4, 32, 32), torch.arange(batch), torch.rand(batch)
    two = TimestepLevels(torch.rand(batch, 2), torch.randint(0, 2, (batch, n)))
    per_patch = two.values.gather(1, two.index)
    functions = {
        "SiT": lambda: sit(x, t, y),
        "PFT, one level": lambda: pft(x, t, y),
        "PFT, two levels": lambda: pft(x, two, y),
        f"PFT, {pft.modulation_nodes} nodes": lambda: pft(x, per_patch, y),
        "PFT, exact": lambda: exact(x, per_patch, y),
    }
    report(f"forward, {size}/2, batch {batch}", functions, rounds)
    truth = exact(x, per_patch, y).velocity
    for name, t_of_patches in (("two levels", two), ("nodes", per_patch)):
        difference = (pft(x, t_of_patches, y).velocity - truth).abs().max().item()
        print(f"largest difference of {name} from exact modulation: {difference:.1e}")


def report(title: str, functions: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time the functions in turn and print their milliseconds and ratios."""
    print(f"{title}; CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, n = {rounds}; milliseconds")
    found = interleaved(functions, rounds)
    for name, seconds in found.items():
        print(f"{name:18s} {spread(seconds, places=0):28s} ratio to SiT {spread(seconds / found['SiT'], 1)}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("training", "forward"), default="training")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="of the forward")
    parser.add_argument("--size", default="B", help="of the forward")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.part == "training":
        training(a.rounds)
    else:
        forward(a.size, a.batch, a.rounds)


if __name__ == "__main__":
    main()
