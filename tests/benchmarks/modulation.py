"""One forward of PFT-B/2 on random weights: what shared modulation saves, in one run, interleaved.

Milliseconds and ratios to the plain SiT-B/2; medians and 5 … 95 %.
"""

from __future__ import annotations

import argparse

import torch

from pforce.models import TimestepLevels, build, sized
from tests.benchmarks.timing import interleaved, spread


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", default="B")
    a = parser.parse_args()
    pft, sit = (build(sized(a.size, difficulty_head=head)).eval() for head in (True, False))
    for model in (pft, sit):  # a fresh model answers zero: wake it, so that the comparison below means something
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.02)
    n = pft.config.patches
    x, y, t = torch.randn(a.batch, 4, 32, 32), torch.arange(a.batch), torch.rand(a.batch)
    two = TimestepLevels(torch.rand(a.batch, 2), torch.randint(0, 2, (a.batch, n)))
    per_token = two.values.gather(1, two.index)
    functions = {
        "SiT": lambda: sit(x, t, y),
        "PFT, one level": lambda: pft(x, t, y),
        "PFT, two levels": lambda: pft(x, two, y),
        "PFT, per token": lambda: pft(x, per_token, y),
    }
    print(
        f"{a.size}/2, batch {a.batch}, CPU, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds"
    )
    found = interleaved(functions, a.rounds)
    for name, seconds in found.items():
        print(f"{name:18s} {spread(seconds, places=0):28s} ratio to SiT {spread(seconds / found['SiT'], 1)}")
    difference = (pft(x, two, y).velocity - pft(x, per_token, y).velocity).abs().max().item()
    print(f"largest difference of two levels from per token: {difference:.1e}")


if __name__ == "__main__":
    main()
