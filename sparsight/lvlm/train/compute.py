"""How tuning is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsight.common.errors import require
from sparsight.lvlm.train.fused_loss import FusedKind


@dataclass(frozen=True, kw_only=True)
class TuningCompute:
    """What spares memory or time of a tuning and changes nothing of what is learnt.

    Args:
        gradient_checkpointing: Recompute decoder layers in the backward pass to save memory.
        vision_cache_gib: Main memory, in GiB, for what the frozen vision tower answers; an image that comes again is
            not computed again. Images must not be augmented.
        fused_loss: Kernels of liger-kernel or cut-cross-entropy in place of head and loss, which hold no logits; see
            ``sparsight.lvlm.train.fused_loss``.

    Raises:
        ValueError: ``vision_cache_gib`` is out of range.
    """

    gradient_checkpointing: bool = False
    vision_cache_gib: float = 0.0
    fused_loss: FusedKind | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(0 <= self.vision_cache_gib < math.inf, "vision_cache_gib", self.vision_cache_gib, "0 or more")
