"""How attention spreads: over image tokens, over heads, and over directions.

Shape legend: h heads, R query rows, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsight.lvlm.scores.attention import AttentionScore, Rows, rows_of_map

if TYPE_CHECKING:
    from sparsight.lvlm.scores.attention_tap import Attending


class EffectiveImageTokens(AttentionScore):
    """On how many image tokens attention lies: the exponential of its entropy on these, mean over rows and heads.

    Rows that see no image count as 0.

    Args:
        rows: Which tokens ask: ``text``, all text tokens, or ``last``, the last token of a sample alone.
    """

    title = "effective_image_tokens"

    def of_rows(self, map_hRT: Tensor, image_T: Tensor) -> Tensor:
        """Mean over heads."""
        on_image = map_hRT[..., image_T]
        mass = on_image.sum(-1, keepdim=True)
        number = entropy(on_image / mass.clamp(min=1e-12)).exp()
        return torch.where(mass[..., 0] > 0, number, 0.0).mean(0)


class HeadDivergence(AttentionScore):
    """How differently heads look: entropy of their mean less their mean entropy, in nats (Jensen and Shannon).

    Args:
        rows: Which tokens ask: ``text``, all text tokens, or ``last``, the last token of a sample alone.
    """

    title = "head_divergence"

    def of_rows(self, map_hRT: Tensor, image_T: Tensor) -> Tensor:
        """Over all keys."""
        return entropy(map_hRT.mean(0)) - entropy(map_hRT).mean(0)


class AttentionRank(AttentionScore):
    """Rank of attention maps over the number of rows, mean over heads (gamma-MoD's ARank, arXiv 2410.13859).

    The diagonal counts as zero, as in the authors' code. A low rank says that tokens repeat each other. Whole maps of
    one sample are held at a time, and each costs a singular value decomposition.

    Args:
        rows: Which tokens ask: ``text``, all text tokens, or ``last``, whose maps have one row.
    """

    title = "attention_rank"

    def __init__(self, rows: Rows = "text") -> None:
        super().__init__(rows)

    def _mean(self, attending: Attending, sample: int) -> Tensor:
        rows_R = self.rows_of[sample]
        if not len(rows_R):
            return attending.key_BgTd.new_zeros(())
        map_hRT = rows_of_map(attending, sample, rows_R, attending.key_BgTd[sample].float()).flatten(0, 1)
        map_hRT = map_hRT.masked_fill(rows_R[:, None] == torch.arange(map_hRT.shape[-1], device=rows_R.device), 0.0)
        return torch.linalg.matrix_rank(map_hRT).float().mean() / len(rows_R)

    def of_rows(self, map_hRT: Tensor, image_T: Tensor) -> Tensor:
        """Not row by row."""
        raise NotImplementedError


def entropy(weights: Tensor) -> Tensor:
    """Entropy of the last axis, in nats."""
    return torch.special.entr(weights).sum(-1)
