"""Splitting a model's parameters over processes (FSDP2), and what reads or writes parameters that are split.

Lightning's ModelParallelStrategy asks a module to do this itself, in ``configure_model``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sparsight.common.errors import ConfigurationError
from sparsight.surgery.replace import shells_of

# transformer blocks and the other large parts; and what the whole DiT asks of its first block's insides
UNITS = {"BasicTransformerBlock", "ResnetBlock2D", "CombinedTimestepLabelEmbeddings"}


def shard(denoiser: nn.Module, mesh: DeviceMesh) -> None:
    """Split every student, every block, and the rest of the denoiser; each is gathered when it is used.

    Students are units of their own: in the layer-wise stage they alone take part in the backward pass, after their
    block has let its weights go. What a student shares with its teacher stays with the block.

    Args:
        denoiser: A denoiser with shells; changed in place.
        mesh: Lightning's mesh of processes, see :func:`data_parallel`.
    """
    mesh = data_parallel(mesh)
    for shell in shells_of(denoiser).values():
        shared = set(shell.teacher.parameters())
        if any(parameter not in shared for parameter in shell.student.parameters()):
            fully_shard(shell.student, mesh=mesh, ignored_params=shared)
    units = [module for module in denoiser.modules() if type(module).__name__ in UNITS]
    for module in reversed(units):  # what is inside comes first
        fully_shard(module, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def shard_parts(model: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Split these parts of a model, such as layers, and then the rest of it; each is gathered when it is used.

    Args:
        model: Changed in place.
        parts: Modules inside, what is inside others first.
        mesh: Lightning's mesh of processes, see :func:`data_parallel`.
    """
    mesh = data_parallel(mesh)
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


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


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are split."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value, the same on all processes, into a tensor that may be split."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)
