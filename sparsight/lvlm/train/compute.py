"""How tuning is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsight.common.errors import require


@dataclass(frozen=True, kw_only=True)
class TuningCompute:
    """What spares memory or time of a tuning and changes nothing of what is learnt.

    Args:
        gradient_checkpointing: Recompute decoder layers in the backward pass to save memory.
        vision_cache_gib: Main memory, in GiB, for what the frozen vision tower answers; an image that comes again is
            not computed again. Images must not be augmented.

    Raises:
        ValueError: ``vision_cache_gib`` is out of range.
    """

    gradient_checkpointing: bool = False
    vision_cache_gib: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(0 <= self.vision_cache_gib < math.inf, "vision_cache_gib", self.vision_cache_gib, "0 or more")
