"""What learns in a distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType

from sparsight.common.errors import need_kind, need_texts, require
from sparsight.diffusion.surgery.rest.low_rank import LoRA


@dataclass(frozen=True, kw_only=True)
class TrainedParts:
    """What of a denoiser trains with its mixers, and where mixers start.

    Args:
        projections: Train copies of the query, key, value and output projections of core mixers as well.
        rest: What of the denoiser's other layers trains in end-to-end stages: ``norms``, ``feed_forward``,
            ``everything``, or patterns of parameter names. The teacher keeps a frozen copy of that.
        lora: Low-rank adapters on linear layers that do not train otherwise, for end-to-end stages.
        init_samples: Samples of the training data that mixers may use to start from the teacher; 0 keeps their
            random start.

    Raises:
        ValueError: ``init_samples`` is out of range.
    """

    projections: bool = False
    rest: Sequence[str] = ()
    lora: LoRA | None = None
    init_samples: int = 64

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        need_texts("rest", self.rest)
        need_kind("lora", self.lora, (LoRA, NoneType), "a LoRA of sparsight.diffusion.surgery.rest.low_rank, or None")
        require(self.init_samples >= 0, "init_samples", self.init_samples, "0 or more")
