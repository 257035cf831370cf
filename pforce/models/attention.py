"""Attention backends. The default is torch's; flash-attn is an extra that is checked before it is used."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pforce.base.errors import InputError

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of q, k and v, each (B, heads, N, D/heads), that returns a tensor of their shape."""

# bf16 has 8 bits of precision; two correct backends differ by the order of their sums.
FLASH_TOLERANCE = 2e-2
FLASH_PACKAGES = ("flash-attn", "flash-attn-4")
"""Packages that bring flash attention: the first is compiled as it is installed (it needs nvcc and about an hour); the
second as it is used, on Hopper and Blackwell GPUs."""


class AttentionError(InputError, RuntimeError):
    """An attention backend cannot be used here; the message says why and what to do."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v by `torch.nn.functional.scaled_dot_product_attention`."""
    return F.scaled_dot_product_attention(q, k, v)


def flash_package() -> str:
    """The installed package of flash attention, as `NAME VERSION`. AttentionError where there is none."""
    return _flash()[0]


def _flash() -> tuple[str, AttentionFunction]:
    """The package, and its function of q, k and v (B, N, heads, D/heads) in half precision."""
    try:
        try:
            from flash_attn import flash_attn_func

            name = FLASH_PACKAGES[0]
        except ImportError:
            from flash_attn.cute import flash_attn_func as with_lse

            name = FLASH_PACKAGES[1]

            def flash_attn_func(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                found: Tensor = with_lse(q, k, v)[0]
                return found

    except ImportError as error:
        raise AttentionError(
            f"model.attention = 'flash': neither of its packages can be imported ({error}). Install one (pip "
            "install 'pforce[cuda]' on Hopper and Blackwell GPUs, pip install flash-attn on others), or set "
            "model.attention to sdpa."
        ) from error
    return f"{name} {importlib.metadata.version(name)}", flash_attn_func


def flash_attention(head_width: int = 64) -> AttentionFunction:
    """flash attention with the signature of `sdpa`, its output and gradients compared with it on this device first.

    AttentionError where the package or a CUDA device is missing, or where a number is wrong.

    Args:
        head_width: D/heads of the model.
    """
    require_attention("flash")
    name, flash = _flash()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        half = [tensor.transpose(1, 2).to(torch.bfloat16) for tensor in (q, k, v)]
        return flash(*half).transpose(1, 2).to(q.dtype)

    try:
        difference = largest_difference(attend, head_width, torch.device("cuda"))
    except Exception as error:  # a build for another torch, or a GPU that it does not support, raises anything
        raise AttentionError(
            f"model.attention = 'flash': {name} does not run on this device with {head_width} channels per head "
            f"({type(error).__name__}: {error}). Set model.attention to sdpa."
        ) from error
    if not difference < FLASH_TOLERANCE:
        raise AttentionError(
            f"model.attention = 'flash': {name} differs from SDPA by {difference:.3g} on this device (allowed: "
            f"{FLASH_TOLERANCE}). Its build does not fit this machine; reinstall it, or set model.attention to sdpa."
        )
    return attend


def largest_difference(attend: AttentionFunction, head_width: int, device: torch.device) -> float:
    """The largest difference from `sdpa` of outputs and of gradients, on random q, k and v of two images with 64 tokens
    and two heads."""
    generator = torch.Generator(device=device).manual_seed(0)
    q, k, v, upstream = (
        torch.randn(2, 2, 64, head_width, generator=generator, device=device).bfloat16().float() for _ in range(4)
    )

    def results(function: AttentionFunction) -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            output = function(*inputs)
            return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]

    pairs = zip(results(attend), results(sdpa), strict=True)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def require_attention(name: str) -> None:
    """Raise AttentionError where a backend's package or a CUDA device is missing. Nothing is run on the device."""
    if name != "flash":
        return
    package = flash_package()
    if not torch.cuda.is_available():
        raise AttentionError(
            f"model.attention = 'flash': {package} needs a CUDA device, and there is none here. "
            "Set model.attention to sdpa."
        )


def attention_function(name: str, head_width: int) -> AttentionFunction:
    """The attention backend named by `ModelConfig.attention`. AttentionError as in `flash_attention`."""
    return flash_attention(head_width) if name == "flash" else sdpa


def attention_used(name: str) -> str:
    """The backend as records name it: with the package's version where it is not torch's."""
    return flash_package() if name == "flash" else name
