"""Data and gradients that are not finite, at a chosen step of a run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Poison(Callback):
    """Spoils the first image of batches.

    Args:
        batches: Numbers of the batches within the epoch.
        rank: The process on which; all of them if not given.
        value: What is written into the image.
    """

    def __init__(self, batches: Collection[int] = (2,), rank: int | None = None, value: float = float("nan")) -> None:
        self.batches = batches
        self.rank = rank
        self.value = value
        self.ids: list[list[int]] = []
        self.before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Spoil what is due; keep the state that stood before."""
        self.ids.append(batch["index"].tolist())
        if batch_idx not in self.batches or self.rank not in (None, trainer.global_rank):
            return
        self.before = state_of(trainer, pl_module)
        pictures = batch["image"] if "image" in batch else batch["inputs"]["pixel_values"]
        pictures[0] = self.value


class PoisonedGradient(Callback):
    """Spoils a gradient, while every loss is finite, from a step on."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put one NaN into the first gradient."""
        if trainer.global_step >= self.step:
            next(p.grad for p in pl_module.parameters() if p.grad is not None).view(-1)[0] = torch.nan


def state_of(trainer: Trainer, module: LightningModule) -> dict[str, torch.Tensor]:
    """Copies of parameters, optimiser states and averages, by name."""
    found = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    for number, state in enumerate(trainer.optimizers[0].state.values()):
        found |= {f"optimiser.{number}.{name}": value.clone() for name, value in state.items()}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, value in getattr(callback, "average", {}).items():
            found[f"average.{name}"] = value.clone()
    return found
