"""Splitting a model's parameters over processes (FSDP2), and what reads or writes parameters that are split.

Lightning's ModelParallelStrategy asks a module to do this itself, in ``configure_model``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import functional_call

from sparsight.common.errors import ConfigurationError

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def shard_parts(model: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Split these parts of a model, such as layers, and then the rest of it; each is gathered when it is used.

    Args:
        model: Changed in place.
        parts: Modules inside, what is inside others first.
        mesh: Lightning's mesh of processes, see ``data_parallel``.
    """
    mesh = data_parallel(mesh)
    for part in (*parts, model):
        fully_shard(part, mesh=mesh)
        # transformers looks up which outputs a model records by how its class prints
        split, own = type(part), own_class(part)
        split.__module__, split.__qualname__ = own.__module__, own.__qualname__


def data_parallel(mesh: DeviceMesh) -> DeviceMesh:
    """The processes that share the data out, of Lightning's mesh of ``data_parallel`` and ``tensor_parallel`` ones.

    Raises:
        ConfigurationError: There are tensor-parallel processes, which is Lightning's default on one machine: they would
            train models of their own.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ConfigurationError(
            "ModelParallelStrategy needs tensor_parallel_size: 1 and data_parallel_size: the number of processes; its "
            'defaults ("auto") split tensors, not data'
        )
    return mesh["data_parallel"]


def split_again(module: nn.Module) -> None:
    """Split what a forward pass without a backward pass leaves whole: checkpoints are loaded into split parameters."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def own_class(module: M) -> type[M]:
    """The class that a module was made of, which FSDP2 derives one of its own from."""
    own: Any = next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))
    return own


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are split."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be split, of the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_whole(module: M, function: Callable[[M], T]) -> T:
    """What a function makes of a module whose parameters are whole while it looks; gradients reach the split ones.

    Every process must ask. Beside a forward pass, arithmetic on split parameters would leave gradients that are split
    in another way.
    """
    if not is_sharded(module):
        return function(module)
    wrapped = _Looking(module, function)
    found: T = functional_call(wrapped, {name: whole(p) for name, p in wrapped.named_parameters()}, ())
    return found


class _Looking(nn.Module):
    def __init__(self, module: nn.Module, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self) -> Any:
        return self.function(self.module)


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value, the same on all processes, into a tensor that may be split."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)
