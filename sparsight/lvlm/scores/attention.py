"""Scores by how the text looks at the image.

Shape legend: B batch, h heads, g heads of keys, n heads that share keys (h = g n), R query rows, T tokens, d channels
of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.scores.base import LayerPass, SampleMeans, StreamingScore
from sparsight.lvlm.scores.tokens import TokenKinds

if TYPE_CHECKING:
    from sparsight.lvlm.scores.attention_tap import Attending

Rows = Literal["text", "last"]
ROWS_AT_ONCE = 128  # bounds memory to that many rows of the attention map


class AttentionScore(StreamingScore):
    """A number for each row of attention maps: mean over query rows of a sample, then over samples with images.

    Only the rows asked for are computed, from the queries and keys that the attention itself gets; its outputs come
    from the fast kernel.

    Args:
        rows: Which tokens ask: ``text``, all text tokens, or ``last``, the last token of a sample alone.
    """

    title: str

    def __init__(self, rows: Rows = "text") -> None:
        if rows not in get_args(Rows):
            raise ValueError(f"rows is one of {', '.join(get_args(Rows))}; got {rows!r}")
        self.rows = rows

    @property
    def name(self) -> str:
        """Tells the rows."""
        return f"{self.title}_{self.rows}"

    def start(self, num_layers: int) -> None:
        """Begin anew."""
        self.means = SampleMeans(num_layers)

    def attached(self, parts: Parts) -> AbstractContextManager[None]:
        """Listen to the decoder's attention."""
        from sparsight.lvlm.scores.attention_tap import tapped

        return tapped(parts, self._listen)

    def begin(self, tokens: TokenKinds) -> None:
        """A new batch is about to pass."""
        self.tokens = tokens
        rows_BT = tokens.of_kind(self.rows) & tokens.image_BT.any(dim=1, keepdim=True)
        self.has_rows_B = rows_BT.any(dim=1)
        self.rows_of = [rows_T.nonzero()[:, 0] for rows_T in rows_BT]

    def observe(self, step: LayerPass) -> None:
        """Nothing: attention was heard inside the layer."""

    def _listen(self, attending: Attending) -> None:
        means_B = torch.stack([self._mean(attending, sample) for sample in range(len(self.rows_of))])
        self.means.add(attending.layer, means_B, self.has_rows_B)

    def _mean(self, attending: Attending, sample: int) -> Tensor:
        """Mean over rows for one sample; 0 if it has no rows."""
        rows_R = self.rows_of[sample]
        key_gTd = attending.key_BgTd[sample].float()
        total = key_gTd.new_zeros(())
        for chunk_R in rows_R.split(ROWS_AT_ONCE):
            map_hRT = rows_of_map(attending, sample, chunk_R, key_gTd).flatten(0, 1)
            total = total + self.of_rows(map_hRT, self.tokens.image_BT[sample]).sum()
        return total / max(1, len(rows_R))

    @abstractmethod
    def of_rows(self, map_hRT: Tensor, image_T: Tensor) -> Tensor:
        """A number for each row (R)."""

    def values(self) -> list[float | None]:
        """Means over samples that have an image."""
        return self.means.values("image tokens")


class ImageAttention(AttentionScore):
    """Attention probability on image tokens: mean over query rows and heads of a sample, then over samples with images.

    Args:
        rows: Which tokens ask: ``text``, all text tokens (those before the image see none of it and count as 0), or
            ``last``, the last token of a sample alone, which is cheaper.
    """

    title = "image_attention"

    def of_rows(self, map_hRT: Tensor, image_T: Tensor) -> Tensor:
        """Mean over heads."""
        return (map_hRT * image_T).sum(-1).mean(0)


def rows_of_map(attending: Attending, sample: int, rows_R: Tensor, key_gTd: Tensor) -> Tensor:
    """Rows of the attention map, (g, n, R, T), fp32."""
    query_hRd = attending.query_BhTd[sample, :, rows_R].float()
    query_gnRd = query_hRd.unflatten(0, (len(key_gTd), -1))
    with torch.autocast(key_gTd.device.type, enabled=False):
        logits_gnRT = torch.einsum("gnrd,gtd->gnrt", query_gnRd, key_gTd) * attending.scaling
    if attending.softcap is not None:
        logits_gnRT = attending.softcap * torch.tanh(logits_gnRT / attending.softcap)
    mask_RT = attending.mask[sample, 0, rows_R]
    if mask_RT.dtype == torch.bool:
        return logits_gnRT.masked_fill(~mask_RT, -torch.inf).softmax(dim=-1)
    return (logits_gnRT + mask_RT).softmax(dim=-1)
