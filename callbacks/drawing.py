"""What callbacks that draw samples ask of a module before training begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.families.conditioning import ClassLabels, Conditioner
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
    conditioner: Conditioner = module.diffusion.conditioner
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


def first_labels(callback: Callback, module: Any, *, most: int) -> list[int]:
    """Labels of a module's first classes.

    Args:
        callback: What is to draw.
        module: What is trained.
        most: Number of labels, unless there are fewer classes.

    Raises:
        ConfigurationError: The module draws no samples, or none of classes.
    """
    check_drawable(callback, module, column=None, conditions=None)
    conditioner: Conditioner = module.diffusion.conditioner
    if not isinstance(conditioner, ClassLabels):
        raise ConfigurationError(
            f"{type(callback).__name__}: give {conditioner.column}s, as there are no classes to draw"
        )
    return list(range(min(most, conditioner.num_classes)))
