"""Neighbourhood attention in reference form: every query attends to a window of its nearest tokens.

Hassani et al., "Neighborhood Attention Transformer", arXiv 2204.07143; even windows and shapes per axis as in
"Generalized Neighborhood Attention", arXiv 2504.16922. At the border the window is shifted inwards, never padded, so
that every query has equally many keys. The form here is a dense mask, for any device: right, not fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.ops.partial import Partial, attend


class NeighborhoodAttention(SoftmaxMixer):
    """Softmax attention over the window of ``kernel_size`` tokens a side around each query.

    Args:
        site: Where the mixer stands.
        kernel_size: Side of the window in tokens, or (rows, columns); even sides reach one token further up and left.
            A window larger than the grid is cut to the grid.

    Raises:
        ValueError: If a side of the window is below 1, or there are more than two.
    """

    def __init__(self, site: Site, *, kernel_size: int | tuple[int, int] = 13) -> None:
        super().__init__(site)
        rows, columns = _pair(kernel_size)
        self.kernel_size = (rows, columns)

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """A window that covers the grid."""
        return {"kernel_size": [grid.height, grid.width]}

    def flops(self, grid: Grid) -> int:
        """Two products of each query with its keys: 4 * N * keys * h * d (the masked-out keys are not counted)."""
        keys = min(self.kernel_size[0], grid.height) * min(self.kernel_size[1], grid.width)
        return 4 * grid.tokens * keys * self.site.heads * self.site.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Neighbourhood attention of (B, h, N, d) tensors; memory grows with N^2."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(grid, q.device), scale=scale)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Neighbourhood attention with its log-sum-exp; memory grows with N^2."""
        return attend(q, k, v, scale, self.mask(grid, q.device))

    def mask(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Which keys (second axis) each query (first axis) attends to: boolean (N, N), row-major tokens."""
        rows_HH = _axis_mask(grid.height, self.kernel_size[0], device)
        columns_WW = _axis_mask(grid.width, self.kernel_size[1], device)
        return (rows_HH[:, None, :, None] & columns_WW[None, :, None, :]).reshape(grid.tokens, grid.tokens)


def _axis_mask(length: int, window: int, device: torch.device | None) -> Tensor:
    """Boolean (length, length): positions within the window of each position along one axis."""
    window = min(window, length)
    position = torch.arange(length, device=device)
    start = (position - window // 2).clamp(0, length - window)
    return (position >= start[:, None]) & (position < start[:, None] + window)


def _pair(kernel_size: int | Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a window, checked."""
    sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"kernel_size is one side or (rows, columns), each at least 1 token, got {kernel_size!r}")
    return sides[0], sides[1]
