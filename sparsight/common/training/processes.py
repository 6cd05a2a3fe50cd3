"""What several processes must agree on, so that they train as one.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from blocks.base import SiteSamples
from sparsight.common.finite import NonFiniteError

T = TypeVar("T")
MESSAGE = 1 << 24  # numbers of gradients that are sent together, at least


def process_count() -> int:
    """Number of processes of the run; 1 if it is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def everywhere(own: T) -> list[T]:
    """What every process has, in their order; anything that can be pickled."""
    if process_count() == 1:
        return [own]
    parts: list[Any] = [None] * process_count()
    dist.all_gather_object(parts, own)
    return parts


def refuse_together(work: Callable[[], object]) -> None:
    """Do work on every process; if what one of them meets is not finite, all end, and none waits for another.

    Raises:
        NonFiniteError: That of the first process that met one.
    """
    refused = None
    try:
        work()
    except NonFiniteError as error:
        refused = str(error)
    text = next((text for text in everywhere(refused) if text is not None), None)
    if text is not None:
        raise NonFiniteError(text)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Those items that fall to this process, so that all of them together have each once."""
    return items if process_count() == 1 else items[dist.get_rank() :: process_count()]


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; gradients do not pass."""
    values = values.detach().clone()
    if process_count() > 1:
        dist.all_reduce(values)
    return values


def alike(tensors: Iterable[Tensor]) -> None:
    """Let tensors be those of the first process; every process must ask, with as many in the same order."""
    for tensor in tensors if process_count() > 1 else ():
        dist.broadcast(tensor.detach(), src=0)


def averaged(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; gradients do not pass."""
    return summed(values) / process_count()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give parameters the mean of their gradients over all processes, in few messages; every process must ask.

    Args:
        parameters: The same, in the same order, on all processes; those without gradients are passed over.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if process_count() == 1:
        return
    groups: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = {}
    for grad in grads:
        messages = groups.setdefault((grad.device, grad.dtype), [[]])
        if sum(each.numel() for each in messages[-1]) > MESSAGE:
            messages.append([])
        messages[-1].append(grad)
    for message in (message for messages in groups.values() for message in messages):
        mean = torch.cat([grad.flatten() for grad in message])
        dist.all_reduce(mean)
        mean /= process_count()
        parts = mean.split([grad.numel() for grad in message])
        torch._foreach_copy_(message, [part.view_as(grad) for part, grad in zip(parts, message, strict=True)])


def gathered(samples: SiteSamples) -> SiteSamples:
    """The samples of all processes, in the order in which one process alone would have met them.

    Global batches are dealt out sample by sample, see ``datamodules.sampler.ResumableSampler``.
    """
    if process_count() == 1:
        return samples
    masses = None if samples.masses is None else _dealt(samples.masses)
    return SiteSamples(_dealt(samples.inputs), _dealt(samples.outputs), samples.grid, masses, samples.positions)


def _dealt(share_BNC: Tensor) -> Tensor:
    shares = [torch.empty_like(share_BNC) for _ in range(process_count())]
    dist.all_gather(shares, share_BNC.contiguous())
    return torch.stack(shares, 1).flatten(0, 1)
