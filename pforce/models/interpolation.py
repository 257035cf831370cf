"""Modulations interpolated between Chebyshev nodes, for images whose every token has a timestep of its own.

Computing a modulation for each token costs half as much again as everything else in the network. But for one image
the modulations are smooth functions of t: the time features are sines and cosines of t with frequencies of at most 1.
So they are computed at K nodes of [0, 1] and spread over the tokens by the weights of Lagrange's interpolation, a
small matrix product. `fit_nodes` finds a K by comparison with exact modulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pforce import seeding

NODES = (8, 12, 16, 24, 32, 48, 64)
"""Numbers of nodes that are tried in turn; beyond the last, modulations are computed exactly. All are multiples of 4: a
product with 6 rows is rounded by MKL as the number of threads has it, so that results would depend on that."""
TOLERANCE = 1e-6
"""Largest relative error of a modulation when it is checked, where the network computes in float32, whose own rounding
of modulations is 1e-6. Until the next check of a training it may grow tenfold."""
TOLERANCE_BFLOAT16 = 1e-4
"""Such an error where the network computes in bfloat16, whose own rounding is 4e-3."""
CHECKED_TIMES = 64
"""Random timesteps at which modulations are compared, each for CHECKED_CLASSES classes."""
CHECKED_CLASSES = 4


def chebyshev_nodes(count: int, device: torch.device | str = "cpu") -> Tensor:
    """The K nodes ½ − ½·cos((2k + 1)π/2K) of [0, 1], rising, (K,) float64."""
    angles = (2 * torch.arange(count, dtype=torch.float64, device=device) + 1) * (math.pi / (2 * count))
    return 0.5 - 0.5 * angles.cos()


def lagrange_weights(t: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights of the K Chebyshev nodes at each timestep: (…) in [0, 1] → (…, K); NaN outside.

    They are sums of Chebyshev polynomials, computed in float64, without the divisions of the barycentric form: at a
    node its weight is 1.
    """
    order = torch.arange(count, dtype=torch.float64, device=t.device)
    nodes = (2 * order + 1) * (math.pi / (2 * count))
    transform = torch.cos(order[:, None] * nodes) * (2 / count)  # (order, node)
    transform[0] *= 0.5
    angles = torch.arccos(1 - 2 * t.double())
    return (torch.cos(angles[..., None] * order) @ transform).to(dtype)


def _same(parameter: Tensor) -> Tensor:
    return parameter


@torch.no_grad()
def modulation_errors(
    embed: Callable[[Tensor], Tensor],
    classes: Tensor,
    layers: Sequence[nn.Linear],
    counts: Sequence[int],
    *,
    gather: Callable[[Tensor], Tensor] = _same,
) -> list[list[float]]:
    """Relative errors of interpolated modulations, for each number of nodes and each layer, in float64: of the
    interpolation alone.

    The error of a layer is the largest of its shifts, scales and gates: of each, the largest error over tokens and
    channels, divided by its largest value.

    Args:
        embed: embedding of timesteps in float64, (…) → (…, D).
        classes: embeddings of some classes, (C, D) float64.
        layers: the linear layers whose outputs are the modulations.
        counts: numbers of nodes.
        gather: makes a parameter whole where it is sharded.
    """
    device, width = classes.device, classes.shape[1]
    with torch.autocast(device.type, enabled=False):
        t = torch.rand(CHECKED_TIMES, generator=seeding.generator("modulation", 0)).to(device).double()
        exact_input = F.silu(embed(t) + classes[:, None])  # (C, T, D)
        node_inputs = [F.silu(embed(chebyshev_nodes(count, device)) + classes[:, None]) for count in counts]
        weights = [lagrange_weights(t, count, torch.float64) for count in counts]
        errors = torch.zeros(len(counts), len(layers))
        for column, layer in enumerate(layers):
            weight, bias = gather(layer.weight).double(), gather(layer.bias).double()
            exact = F.linear(exact_input, weight, bias).unflatten(-1, (-1, width))  # (C, T, parts, D)
            largest = exact.abs().amax(dim=(0, 1, 3)).clamp(min=torch.finfo(torch.float32).tiny)
            for row, (inputs, spread) in enumerate(zip(node_inputs, weights, strict=True)):
                found = (spread @ F.linear(inputs, weight, bias)).unflatten(-1, (-1, width))
                errors[row, column] = ((found - exact).abs().amax(dim=(0, 1, 3)) / largest).max()
    return errors.tolist()
