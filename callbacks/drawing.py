"""What callbacks that draw samples ask of a module before training begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.diffusion_model import DiffusionModel


@runtime_checkable
class Draws(Protocol):
    """A module that draws samples, as ``lightning_modules.diffusion.DiffusionModule`` does."""

    diffusion: DiffusionModel

    def draw(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """Images in [0, 1] for the conditions of a batch; ids decide their starting noise."""
        ...

    def draw_latents(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """What these are decoded from."""
        ...


@runtime_checkable
class DrawsTeacher(Draws, Protocol):
    """One that also draws what its teacher makes of the same noise."""

    def draw_teacher(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """Images of the teacher."""
        ...

    def draw_teacher_latents(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """What these are decoded from."""
        ...


def check_drawable(callback: Callback, module: Any, *, column: str | None, conditions: Sequence[Any] | None) -> None:
    """See that a module can draw samples under these conditions.

    Args:
        callback: What is to draw.
        module: What is trained.
        column: ``label`` or ``caption``; those of the data if not given.
        conditions: The labels or captions.

    Raises:
        ConfigurationError: The module draws no samples, is conditioned on the other of the two, or has no such class.
    """
    name = type(callback).__name__
    if not isinstance(module, Draws):
        raise ConfigurationError(f"{type(module).__name__} draws no samples: leave {name} out")
    if column is None:
        return
    conditioner = module.diffusion.conditioner
    if column != conditioner.column:
        raise ConfigurationError(
            f"{name} is given {column}s, but {type(module.diffusion.denoiser).__name__} is conditioned on "
            f"{conditioner.column}s: give {conditioner.column}s instead"
        )
    if column == "label":
        try:
            conditioner({"label": torch.tensor(conditions)}, (1, 1))  # of any size
        except ValueError as error:
            raise ConfigurationError(f"{name}: {error}") from error
