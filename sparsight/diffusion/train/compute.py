"""How training of a denoiser is computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DenoiserCompute:
    """What spares memory or time of training a denoiser and changes nothing of what is learnt.

    Args:
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.
        compile: Compile every transformer block.
    """

    gradient_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class DistillationCompute(DenoiserCompute):
    """What spares memory or time of a distillation and changes nothing of what is learnt.

    Args:
        gradient_checkpointing: Recompute blocks in the end-to-end backward pass to save memory.
        compile: Compile every transformer block.
        replicate_trained: Under ModelParallelStrategy (FSDP2), hold what trains whole in every process, and split what
            is frozen alone.
    """

    replicate_trained: bool = False
