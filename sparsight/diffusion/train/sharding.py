"""Splitting a denoiser with shells over processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from sparsight.common.training.sharding import data_parallel
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.surgery.replace import shells_of


def shard(denoiser: nn.Module, mesh: DeviceMesh, *, but: Collection[nn.Parameter] = ()) -> None:
    """Split what students train, every block, and the rest of the denoiser; each is gathered when it is used.

    What students train is units of its own: in the layer-wise stage students alone take part in the backward pass,
    after their block has let its weights go.

    Args:
        denoiser: A denoiser with shells; changed in place.
        mesh: Lightning's mesh of processes, see ``sparsight.common.training.sharding.data_parallel``.
        but: What every process keeps whole. Gradients of that are its own: see ``average_gradients``.
    """
    mesh, kept = data_parallel(mesh), set(but)
    for shell in shells_of(denoiser).values():
        for unit in shell.trained_units():
            if not kept.issuperset(unit.parameters()):
                fully_shard(unit, mesh=mesh, ignored_params=kept)
    units = [module for module in denoiser.modules() if type(module).__name__ in family_of(denoiser).shard_units]
    for module in reversed(units):  # what is inside comes first
        fully_shard(module, mesh=mesh, ignored_params=kept)
    fully_shard(denoiser, mesh=mesh, ignored_params=kept)
