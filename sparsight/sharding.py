"""Splitting a model's parameters over processes (FSDP2), and what reads or writes parameters that are split.

Lightning's ModelParallelStrategy asks a module to do this itself, in ``configure_model``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sparsight.hyperparameters import ConfigurationError
from sparsight.surgery.replace import shells_of

# transformer blocks and the other large parts; and what the whole DiT asks of its first block's insides
UNITS = {"BasicTransformerBlock", "ResnetBlock2D", "CombinedTimestepLabelEmbeddings"}


def shard(denoiser: nn.Module, mesh: DeviceMesh) -> None:
    """Split every student, every block, and the rest of the denoiser; each is gathered when it is used.

    Students are units of their own: in the layer-wise stage they alone take part in the backward pass, after their
    block has let its weights go. What a student shares with its teacher stays with the block.

    Args:
        denoiser: A denoiser with shells; changed in place.
        mesh: Lightning's mesh of ``data_parallel`` and ``tensor_parallel`` processes.

    Raises:
        ConfigurationError: There are tensor-parallel processes, which is Lightning's default on one machine: they would
            train models of their own.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ConfigurationError(
            "ModelParallelStrategy needs tensor_parallel_size: 1 and data_parallel_size: the number of processes; its "
            'defaults ("auto") split tensors, not data'
        )
    mesh = mesh["data_parallel"]
    for shell in shells_of(denoiser).values():
        shared = set(shell.teacher.parameters())
        if any(parameter not in shared for parameter in shell.student.parameters()):
            fully_shard(shell.student, mesh=mesh, ignored_params=shared)
    for module in reversed(list(denoiser.modules())):  # what is inside comes first
        if type(module).__name__ in UNITS:
            fully_shard(module, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


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
