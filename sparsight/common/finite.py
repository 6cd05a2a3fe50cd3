"""Numbers that are not finite: many tensors are looked at together, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from sparsight.common.errors import Told

SHOWN = 8  # names and ids in a message
PLAIN = (Tensor, Parameter)  # quantised weights are tensors of other classes, whose numbers are codes


class NonFiniteError(Told, FloatingPointError):
    """Something that must be a finite number is not.

    Who catches it must not write a checkpoint on the way out: the state it leaves is not to be trained on.
    """


@runtime_checkable
class Guarded(Protocol):
    """A module whose optimiser steps are looked at before they are taken."""

    took_step: bool
    """Whether the last optimiser step changed parameters; if not, averages must not move either."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every floating-point tensor is finite everywhere: a boolean on their device, which nobody waited for.

    Of tensors that are split over processes this process's share counts. What is on several devices is brought to that
    of the first one.
    """
    given = list(tensors)
    extents = [extent for tensor in given if (extent := _extent(tensor)) is not None]
    if not extents:
        return torch.ones((), dtype=torch.bool, device=given[0].device if given else None)
    return torch.stack([extent.isfinite().to(extents[0].device, non_blocking=True) for extent in extents]).all()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity somewhere; one wait for each device."""
    extents = {name: extent for name, tensor in tensors.items() if (extent := _extent(tensor)) is not None}
    found = []
    for _, names in groupby(sorted(extents, key=lambda name: str(extents[name].device)), lambda n: extents[n].device):
        group = list(names)
        finite = torch.stack([extents[name].isfinite() for name in group]).tolist()
        found += [name for name, fine in zip(group, finite, strict=True) if not fine]
    return sorted(found)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that are not finite.

    Args:
        tensors: By name.
        what: What they are, for the message, which begins with it.

    Raises:
        NonFiniteError: One is not; the message names the first ones.
    """
    names = not_finite(tensors)
    if names:
        raise NonFiniteError(f"{what}: {listed(names)} {'is' if len(names) == 1 else 'are'} not finite")


def check_rows(tensors: Mapping[str, Tensor | None], index: Tensor, what: str) -> None:
    """Refuse what was computed for samples if it is not finite.

    Args:
        tensors: (B, ...) by name; ``None`` is passed over.
        index: Sample ids (B,).
        what: What they are, for the message.

    Raises:
        NonFiniteError: One is not; the message gives the ids of the samples.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name in not_finite(given):
        raise NonFiniteError(f"{what}: {name} of {samples(broken_rows(given[name], index))} not finite")


def broken_rows(tensor: Tensor, index: Tensor) -> list[int]:
    """Ids of the samples whose row of a (B, ...) tensor is not finite."""
    broken_B = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
    return index.cpu()[broken_B.cpu()].tolist()


def check_checkpoint(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that holds anything that is not finite.

    Single numbers that callbacks keep are left out: Lightning's begin at infinity, as the best score so far.

    Raises:
        NonFiniteError: A tensor of parameters, averages or optimiser states is not.
    """
    tensors = dict(_tensors(checkpoint, ""))
    scores = {name for name, tensor in tensors.items() if name.startswith("callbacks.") and tensor.ndim == 0}
    check_finite({name: tensor for name, tensor in tensors.items() if name not in scores}, "not saved: the checkpoint")


def listed(names: Sequence[object]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def samples(ids: Sequence[int]) -> str:
    """Sample ids with the verb that follows."""
    return f"sample {ids[0]} is" if len(ids) == 1 else f"samples {listed(ids)} are"


def _extent(tensor: Tensor) -> Tensor | None:
    """The largest magnitude, NaN if one is there; ``None`` where there is nothing to look at."""
    local = tensor.detach()
    if isinstance(local, DTensor):
        local = local.to_local()
    if type(local) not in PLAIN or not local.is_floating_point() or local.is_meta or local.numel() == 0:
        return None
    if local.dtype.itemsize == 1:  # stored in 8 bits: no arithmetic
        local = local.float()
    return torch.linalg.vector_norm(local, torch.inf)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _tensors(item, f"{name}.{position}")
