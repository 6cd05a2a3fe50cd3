"""How training of a denoiser is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DenoiserCompute:
    """What spares memory or time of training a denoiser and changes nothing of what is learnt.

    Args:
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.
        compile: Compile every transformer block; ``auto`` does so to train on a GPU where torch can, else says why.
    """

    gradient_checkpointing: bool = False
    compile: bool | Literal["auto"] = False


@dataclass(frozen=True, kw_only=True)
class DistillationCompute(DenoiserCompute):
    """What spares memory or time of a distillation and changes nothing of what is learnt.

    Args:
        gradient_checkpointing: Recompute blocks in the end-to-end backward pass to save memory.
        compile: Compile every transformer block; ``auto`` does so to train on a GPU where torch can, else says why.
        replicate_trained: Under ModelParallelStrategy (FSDP2), hold what trains whole in every process, and split what
            is frozen alone.
    """

    replicate_trained: bool = False
