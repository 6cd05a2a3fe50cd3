"""What a training needs of a device's memory, as a table: bytes by what they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sparsight.common.measure.memory import free_bytes
from sparsight.common.tables import WIDTH, format_table

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for, on one device.

    Attributes:
        standing: Held all the time, by name.
        not_counted: What is left out, in words.
        remedies: What to do if the device has less, in words.
        stages: What each kind of stage holds besides, by name; only one of them is there at a time.
        available: Bytes that the device has for this, or ``None`` if it is no GPU.
    """

    standing: dict[str, int]
    not_counted: str
    remedies: str
    stages: dict[str, int] = field(default_factory=dict)
    available: int | None = None

    @property
    def total(self) -> int:
        """Bytes at the peak of the most demanding stage."""
        return sum(self.standing.values()) + max(self.stages.values(), default=0)

    @property
    def too_much(self) -> str:
        """A warning with the remedy, if the device has less; empty otherwise."""
        if self.available is None or self.total <= self.available:
            return ""
        return (
            f"this run may need {self.total / GIB:.1f} GiB, and the device has {self.available / GIB:.1f} GiB for it: "
            f"{self.remedies}"
        )

    def text(self) -> str:
        """A table, in MiB for small models, and what is not in it."""
        unit, size = ("GiB", GIB) if self.total >= GIB else ("MiB", MIB)
        rows = [{"memory per device": name, unit: f"{count / size:.2f}"} for name, count in self._rows()]
        return f"{format_table(rows)}\n{fill(f'Not counted: {self.not_counted}.', WIDTH, break_on_hyphens=False)}"

    def _rows(self) -> Iterator[tuple[str, int]]:
        yield from ((name, count) for name, count in self.standing.items() if count)
        yield from self.stages.items()
        yield "sum, with the larger of the stages" if len(self.stages) > 1 else "sum", self.total
        if self.available is not None:
            yield "free on the device before the run", self.available


def training_bytes(
    trained: int,
    *,
    optimizer: Callable[..., torch.optim.Optimizer],
    at_a_time: int | None = None,
    averaged: bool = False,
) -> dict[str, int]:
    """What training holds beside weights, by name.

    Args:
        trained: Bytes of all weights that are ever trained.
        optimizer: Called as ``optimizer(parameters, learning_rate)``.
        at_a_time: Most bytes of them that are trained at one time; all of them if not given.
        averaged: Whether a moving average of what is trained is kept.
    """
    learning = trained if at_a_time is None else at_a_time
    return {
        "their gradients": learning,
        "optimiser state": round(learning * _state_share(optimizer)),
        "moving average, and raw weights while it is in use": 2 * trained if averaged else 0,
    }


def available_bytes(device: torch.device) -> int | None:
    """Bytes that a GPU has for a run whose weights may be there already; ``None`` for other devices."""
    return free_bytes(device) + torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all of these together; of codes and their scales where a tensor is made of those."""
    return sum(part.numel() * part.element_size() for tensor in tensors for part in _inner(tensor))


def _inner(tensor: Any) -> Iterator[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inner(vars(tensor)[name])


def _state_share(optimizer: Callable[..., torch.optim.Optimizer]) -> float:
    """Bytes of optimiser state for every byte of parameters, seen on a small parameter."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    trained = optimizer([parameter], 1e-4)
    parameter.grad = torch.zeros_like(parameter)
    trained.step()
    state = trained.state[parameter].values()
    held = sum(value.numel() * value.element_size() for value in state if isinstance(value, Tensor))
    return held / (parameter.numel() * parameter.element_size())
