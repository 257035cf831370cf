"""Attention backends. The default is torch's; flash-attn is an extra that is checked before it is used."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of q, k and v, each (B, heads, N, D/heads), that returns a tensor of their shape."""

# bf16 has 8 bits of precision; two correct backends differ by the order of their sums.
FLASH_TOLERANCE = 2e-2


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v by `torch.nn.functional.scaled_dot_product_attention`."""
    return F.scaled_dot_product_attention(q, k, v)


def flash_attention() -> AttentionFunction:
    """flash-attn's forward with the signature of `sdpa`, compared with it on this device first.

    RuntimeError where the package or a CUDA device is missing, or where its output is wrong.
    """
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise RuntimeError(
            "model.attention = 'flash': the package flash-attn is not installed. "
            "Install the extra (pip install 'pforce[cuda]'), or set model.attention to sdpa."
        ) from error
    if not torch.cuda.is_available():
        raise RuntimeError(
            "model.attention = 'flash': flash-attn needs a CUDA device and this machine has none. "
            "Set model.attention to sdpa."
        )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # flash-attn takes (B, N, heads, d) in half precision.
        half = [tensor.transpose(1, 2).to(torch.bfloat16) for tensor in (q, k, v)]
        return flash_attn_func(*half).transpose(1, 2).to(q.dtype)

    generator = torch.Generator(device="cuda").manual_seed(0)
    probe = [
        torch.randn(2, 2, 64, 64, generator=generator, device="cuda", dtype=torch.bfloat16).float() for _ in range(3)
    ]
    difference = (attend(*probe) - sdpa(*probe)).abs().max().item()
    if not difference < FLASH_TOLERANCE:
        raise RuntimeError(
            f"flash-attn differs from SDPA by {difference:.3g} on this device (allowed: {FLASH_TOLERANCE}). "
            "Its build does not fit this machine; reinstall it, or set model.attention to sdpa."
        )
    return attend


def attention_function(name: str) -> AttentionFunction:
    """The attention backend named by `ModelConfig.attention`. RuntimeError as in `flash_attention`."""
    return flash_attention() if name == "flash" else sdpa
