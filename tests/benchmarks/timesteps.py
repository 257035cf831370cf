"""Drawing 256 × 256 timesteps on one core: milliseconds, median and 5 … 95 % of 200 interleaved rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from pforce.timesteps import LTG, SAMPLERS, SRM, TruncatedGaussian
from tests.benchmarks.timing import interleaved, spread

BATCH = PATCHES = 256


def recursive_srm(generator: torch.Generator) -> Tensor:
    """SRM as a recursion over single splits, for comparison: a gamma draw for every node, not every level."""

    def split(norm: Tensor, d: int) -> list[Tensor]:
        if d == 1:
            return [norm]
        d1, d2 = d // 2, d - d // 2
        a = torch.full((2, BATCH), float((d - 1 - d % 2) ** 1.05), dtype=torch.float64)
        g1, g2 = torch._standard_gamma(a, generator=generator)
        low, high = (norm - d2).clamp_min(0), norm.clamp_max(d1)
        left = low + (high - low) * (g1 / (g1 + g2)).float()
        return split(left, d1) + split(norm - left, d2)

    t = torch.stack(split(torch.rand(BATCH, generator=generator) * PATCHES, PATCHES), dim=1)
    return t.gather(1, torch.rand(BATCH, PATCHES, generator=generator).argsort(dim=1))


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    samplers = {name: sampler() for name, sampler in SAMPLERS.items()}
    samplers |= {"srm(sharpness=10)": SRM(10.0), "ltg(exact)": LTG(truncation="exact")}
    samplers |= {"truncated_gaussian(exact)": TruncatedGaussian(truncation="exact")}
    functions = {
        name: (lambda sampler=sampler: sampler(BATCH, PATCHES, generator=generator))
        for name, sampler in samplers.items()
    }
    functions["srm, a recursion over splits"] = lambda: recursive_srm(generator)
    print(f"{BATCH} × {PATCHES} timesteps, float32, CPU, one thread, torch {torch.__version__}; milliseconds")
    for name, seconds in interleaved(functions, 200).items():
        print(f"{name:32s} {spread(seconds, places=3)}")


if __name__ == "__main__":
    main()
