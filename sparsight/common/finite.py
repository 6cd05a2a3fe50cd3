"""Numbers that are not finite: many tensors are looked at together, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from sparsight.common.errors import Told

Key = TypeVar("Key")

SHOWN = 8  # names and ids in a message
PLAIN = (Tensor, Parameter)  # quantised weights are tensors of other classes, whose numbers are codes


class NonFiniteError(Told, FloatingPointError):
    """Something that must be a finite number is not.

    Who catches it must not write a checkpoint on the way out: the state it leaves is not to be trained on.
    """


@runtime_checkable
class Guarded(Protocol):
    """A module whose optimiser steps are looked at before they are taken."""

    took_step: bool | Tensor
    """Whether the last optimiser step changed parameters; if not, averages must not move either. A tensor on the device
    where the device decided, and nobody has waited for it."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every floating-point tensor is finite everywhere: a boolean on their device, which nobody waited for.

    Of tensors that are split over processes this process's share counts. What is on several devices is brought to that
    of the first one.
    """
    given = list(tensors)
    looks = looked_at(dict(enumerate(given)))
    if not looks:
        return torch.ones((), dtype=torch.bool, device=given[0].device if given else None)
    first = looks[0][1].device
    return torch.stack([fine.all().to(first, non_blocking=True) for _, fine in looks]).all()


def looked_at(tensors: Mapping[Key, Tensor]) -> list[tuple[list[Key], Tensor]]:
    """Which floating-point tensors are finite everywhere, a few kernels for all of them together.

    Returns:
        Keys, and whether the tensor of each is finite, on its device, which nobody waited for; by device and dtype.
    """
    groups: dict[tuple[torch.device, torch.dtype], dict[Key, Tensor]] = {}
    for key, tensor in tensors.items():
        local = _numbers(tensor)
        if local is not None:
            groups.setdefault((local.device, local.dtype), {})[key] = local
    # the largest magnitude is NaN where one is there
    return [
        (list(group), torch.stack(torch._foreach_norm(list(group.values()), torch.inf)).isfinite())
        for group in groups.values()
    ]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity somewhere; one wait for each device and dtype."""
    return broken(looked_at(tensors))


def broken(looks: Iterable[tuple[list[str], Tensor]]) -> list[str]:
    """Names of what was not finite when it was looked at, in order; waits for that."""
    return sorted(
        name for names, fine in looks for name, is_fine in zip(names, fine.tolist(), strict=True) if not is_fine
    )


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


def _numbers(tensor: Tensor) -> Tensor | None:
    """This process's share of the numbers; ``None`` where there is nothing to look at."""
    local = tensor.detach()
    if isinstance(local, DTensor):
        local = local.to_local()
    if type(local) not in PLAIN or not local.is_floating_point() or local.is_meta or local.numel() == 0:
        return None
    if local.dtype.itemsize == 1:  # stored in 8 bits: no arithmetic
        local = local.float()
    return local


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _tensors(item, f"{name}.{position}")
