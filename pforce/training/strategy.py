"""Strategies by which several workers train one model: whole copies (DDP), or a part of every layer each (FSDP2).

Both give the result of one worker, except for the order in which gradients are added.
"""

from __future__ import annotations

import functools
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pforce.flow import Prediction
from pforce.models import PatchForcingTransformer
from pforce.parallel import Workers

Sharding = Literal["none", "fsdp"]
MOST_PROBLEM = 200
"""Characters of a compiler's error."""


class Forward(Protocol):
    """The model as the loss calls it."""

    patch: int

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, /) -> Prediction: ...

    def synchronise(self, wanted: bool) -> AbstractContextManager[None]:
        """Context in which the gradients of backward passes are averaged over the workers, if `wanted`."""
        ...


class _Alone:
    """The strategy of one worker: the model itself."""

    def __init__(self, model: PatchForcingTransformer) -> None:
        self.patch = model.patch
        self.call: Callable[..., Prediction] = model

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, /) -> Prediction:
        return self.call(x, t, y)

    def synchronise(self, wanted: bool) -> AbstractContextManager[None]:
        return nullcontext()


class _Copies(_Alone):
    """Distributed data parallel: gradients are averaged while the backward pass still runs."""

    def __init__(self, model: PatchForcingTransformer) -> None:
        super().__init__(model)
        device = next(model.parameters()).device
        ids = [device.index or 0] if device.type == "cuda" else None
        from torch.nn.parallel import DistributedDataParallel

        self.call = self.parallel = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def synchronise(self, wanted: bool) -> AbstractContextManager[None]:
        return nullcontext() if wanted else self.parallel.no_sync()


class _Shards(_Alone):
    """Fully sharded data parallel: the hooks are in the model (see `shard`)."""

    def __init__(self, model: PatchForcingTransformer) -> None:
        super().__init__(model)
        self.model: Any = model

    @contextmanager
    def synchronise(self, wanted: bool) -> Iterator[None]:
        self.model.set_requires_gradient_sync(wanted)
        yield


def shard(model: PatchForcingTransformer, workers: Workers, device: torch.device) -> None:
    """Shard every parameter over the workers (FSDP2); layers are gathered one block at a time when they are used."""
    # Takes half a second to import, which a training with one worker does not need.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (workers.count,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def make_forward(model: PatchForcingTransformer, workers: Workers, *, compiled: bool) -> Forward:
    """The model wrapped for training by these workers."""
    if compiled:
        compile_blocks(model)
    if workers.count == 1:
        return _Alone(model)
    return _Shards(model) if is_split(next(model.parameters())) else _Copies(model)


def compile_blocks(model: PatchForcingTransformer) -> None:
    """Compile the model's blocks in place: one compilation serves all, as their code and shapes are the same. A warning
    says why where nothing can be compiled."""
    problem = compiler_problem(next(model.parameters()).device)
    if problem:
        told = f"training.compile: the model is not compiled, which changes only the speed: {problem}"
        warnings.warn(told, stacklevel=2)
        return
    for block in model.blocks:
        block.compile(dynamic=False)


@functools.cache
def compiler_problem(device: torch.device) -> str:
    """Why torch.compile does not work on a device, such as for want of a C++ compiler; empty where it does."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=device))
    except Exception as error:  # each backend raises its own
        return textwrap.shorten(f"{type(error).__name__}: {error}", MOST_PROBLEM)
    return ""


def is_split(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over the workers (a DTensor)."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered where it is sharded. All workers must call it."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor."""
    return tensor.to_local() if is_split(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def put(target: Tensor, value: Tensor | None, workers: Workers) -> None:
    """Fill a tensor on every worker with the first worker's value (None on the others). All workers must call it."""
    if is_split(target):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        device = target.to_local().device
        source = torch.empty(target.shape, dtype=target.dtype, device=device) if value is None else value.to(device)
        target.copy_(distribute_tensor(source.to(target.dtype), target.device_mesh, target.placements))
        return
    if value is not None:
        target.copy_(value)
    workers.spread(target)
