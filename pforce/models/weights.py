"""State dicts checked against a configuration, for our model files and for published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pforce.base.foreign import printable, quoted
from pforce.base.tensors import has_its_values
from pforce.models.config import ModelConfig
from pforce.models.transformer import PatchForcingTransformer

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to the names of parameters."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SMALL = 20_000
"""Weights of a model that is small enough to be built whatever the file holds, so that what is missing can be named."""
NAMES_SHOWN, NAME_LENGTH = 10, 100


class WeightsError(ValueError):
    """Weights, or the configuration beside them, do not make a model. The caller adds the file's name."""


def listed(names: list[str]) -> str:
    """Up to ten names, then the number of further ones."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(printable(name[:NAME_LENGTH]) for name in names[:NAMES_SHOWN]) + (
        f" and {more} more" if more > 0 else ""
    )


def named_tensors(state: Mapping[Any, object]) -> dict[str, Tensor]:
    """The tensors of a state dict under their bare names: wrappers' prefixes are removed, in any order and number.

    WeightsError for an entry that is not a dense floating-point tensor, and for two of the same bare name.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"the entry {quoted(key)} is a {type(value).__name__}, where a state dict has named tensors"
            )
        if value.layout != torch.strided or value.dtype not in FLOATS or value.is_meta:
            raise WeightsError(f"{quoted(key)} is not a dense floating-point tensor ({value.dtype}, {value.layout})")
        if not has_its_values(value):
            raise WeightsError(
                f"{quoted(key)} has the shape {quoted(tuple(value.shape))}, of which the file lacks values"
            )
        name = key
        while prefix := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), ""):
            name = name.removeprefix(prefix)
        if name in tensors:
            raise WeightsError(f"{quoted(name)} is there twice, with and without a wrapper's prefix: keep one of them")
        tensors[name] = value
    return tensors


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU. WeightsError where a value is not finite."""
    copy = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not copy.isfinite().all():
        raise WeightsError(f"{name} holds values that are not finite: the training diverged, or the file is damaged")
    return copy


def float_weights(model: PatchForcingTransformer) -> dict[str, Tensor]:
    """Copies of the parameters and positions, float32 on the CPU, in the order of the model's state dict.

    WeightsError names the first tensor with a value that is not finite.
    """
    return {name: _as_float32(name, tensor) for name, tensor in named_tensors(model.state_dict()).items()}


def _check_sizes(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise WeightsError where a configuration describes a much larger model than the weights beside it, before one of
    that size is built: a file's text makes no room."""
    d = config.width
    least = config.depth * 10 * d**2 + (config.patches + config.classes) * d + config.channels * config.patch**2 * d
    held = sum(tensor.numel() for tensor in tensors.values())
    if least > 2 * held + SMALL:
        raise WeightsError(
            f"the configuration describes a model of at least {least:,} weights, where the file holds {held:,}"
        )


def filled(config: ModelConfig, tensors: Mapping[str, Tensor]) -> PatchForcingTransformer:
    """The model of a configuration with copies of these weights: float32, on the CPU, in eval mode.

    WeightsError lists unknown and missing names, or names the first tensor with a wrong shape or values that are not
    finite.
    """
    _check_sizes(config, tensors)
    with torch.device("meta"):  # spends neither time nor random numbers on weights that are replaced at once
        model = PatchForcingTransformer(config)
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    problems = [f"missing {listed(missing)}"] * bool(missing) + [f"unknown {listed(unknown)}"] * bool(unknown)
    if problems:
        raise WeightsError(f"the weights do not fit the configuration: {'; '.join(problems)}")
    for name, place in expected.items():
        if tensors[name].shape != place.shape:
            raise WeightsError(
                f"{name} has shape {tuple(tensors[name].shape)}, the configuration wants {tuple(place.shape)}"
            )
    model.load_state_dict({name: _as_float32(name, tensors[name]) for name in expected}, assign=True)
    return model.eval()
