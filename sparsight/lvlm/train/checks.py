"""What would fail while a tuning runs, refused before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from blocks.tokens.base import Edit
from blocks.tokens.tower import TowerEdit
from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.ddp import check_training_may_change
from sparsight.common.training.schedule import Retiring
from sparsight.lvlm.model.packing import KERNELS
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import METHODS


@runtime_checkable
class Packing(Protocol):
    """Data that can put several samples into a row."""

    packing: bool


def check_cached_tower(recipe: Sequence[Edit], gib: float) -> None:
    """Refuse to keep what a vision tower answers where methods learn inside it.

    Raises:
        ValueError: That is asked for.
    """
    names = [type(method).__name__ for method in recipe if isinstance(method, TowerEdit)]
    if names and gib > 0:
        told = " and ".join(names)
        raise ValueError(
            f"compute.vision_cache_gib keeps what the vision tower answers, which {told} of recipe change: set it to 0"
        )


def check_tuning(
    trainer: Trainer,
    stages: Sequence[TuningStage],
    *,
    frozen: torch.dtype,
    kernel: str,
    loses_layers: bool,
    heals: bool,
) -> None:
    """Refuse what does not go together; warn of pruning without a schedule.

    Args:
        trainer: It, with its data.
        stages: What is trained.
        frozen: Precision of what is never trained.
        kernel: transformers' name of the text model's attention kernel.
        loses_layers: Whether layers may leave.
        heals: Whether hidden states are compared.

    Raises:
        ConfigurationError: Frozen and trained weights differ in precision, and nothing brings them together; the stages
            train different parts, or methods by turns, under a strategy that cannot; or rows are packed, and layers are
            to be scored, hidden states compared, or the kernel of attention tells samples of a row apart by no mask.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if loses_layers and not any(isinstance(callback, Retiring) for callback in callbacks):
        rank_zero_warn("`prune` is set, but no callback PruningSchedule: no layer will leave")
    data = datamodule_of(trainer)
    packed = isinstance(data, Packing) and data.packing
    if packed and kernel not in KERNELS:
        raise ConfigurationError(
            f"data.batching.packing keeps the samples of a row apart by a mask, which attention kernel {kernel} does "
            f"not take: set model.loading.attn_implementation to {' or '.join(KERNELS)}, or that to false"
        )
    if packed and (loses_layers or heals):
        raise ConfigurationError(
            "prune scores layers, and healing compares hidden states, on training batches with a sample a row: set "
            "data.batching.packing to false"
        )
    by_turns = len(stages) > 1 and any(METHODS in stage.train for stage in stages)  # LoFiT's scales, then offsets
    if by_turns or len({frozenset(stage.train) for stage in stages}) > 1:
        check_training_may_change(trainer)
    if frozen != torch.float32 and trainer.precision in ("32", "32-true", 32):
        raise ConfigurationError(
            f"model.loading.dtype {frozen} of the frozen parts needs mixed precision, as trained parts are in float32: "
            "set trainer.precision to bf16-mixed, or model.loading.dtype to float32"
        )
