"""Attention by way of a few agents, or of proxies: two softmaxes, one after the other, at linear cost.

Han et al., "Agent Attention", arXiv 2312.08874: agents are pooled queries, which gather from all keys and hand on to
all queries; with the settings of its training-free form for Stable Diffusion. Wang et al., "Qihoo-T2X" (PT-DiT), arXiv
2409.04005: proxies attend to each other, and all tokens to them.

Shape legend: B batch, h heads, N tokens, n agents, d channels of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import CoreMixer, Grid, Site
from blocks.ops.partial import attend
from blocks.ops.tiles import tile_count, tile_of_token, to_tiles, tokens_in_tiles


class AgentAttention(CoreMixer):
    """Softmax of agents over keys, then of queries over agents. Two softmaxes are none: it equals attention nowhere.

    Args:
        site: Where the mixer stands.
        cells: Agents along every axis; each is the mean of the queries (``agent``) or of queries, keys and values
            (``proxy``) of its part of the grid. 7, as published, makes 49 of an image.
        kind: ``agent``: agents gather from all keys, and queries weigh agents by the agents themselves. ``proxy``: they
            gather from each other, with the log of the tokens that each stands for, and queries weigh them by mean
            keys.
        sharpness: Exponent of the scale of the second softmax; 0.3 in the training-free form for Stable Diffusion.
        shortcut: Share of a token's own value that is added; 0.075 there.

    Raises:
        ValueError: A number is out of range, or the kind unknown.
    """

    served_axes = (1, 2, 3)

    def __init__(
        self,
        site: Site,
        *,
        cells: int = 7,
        kind: Literal["agent", "proxy"] = "agent",
        sharpness: float = 1.0,
        shortcut: float = 0.0,
    ) -> None:
        super().__init__(site)
        if cells < 1:
            raise ValueError(f"cells of AgentAttention is {cells!r}: give 1 or more for each axis")
        if kind not in ("agent", "proxy"):
            raise ValueError(f"kind of AgentAttention is {kind!r}: give agent or proxy")
        self.cells, self.kind, self.sharpness, self.shortcut = cells, kind, sharpness, shortcut

    def flops(self, grid: Grid) -> int:
        """Four products of N x n x (h*d): 8 N n h d; proxies: 4 N n h d + 4 n^2 h d (the means are not counted)."""
        agents, inner = tile_count(self._sides(grid), grid), self.site.heads * self.site.head_dim
        return 4 * (grid.tokens + (grid.tokens if self.kind == "agent" else agents)) * agents * inner

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors by way of agents."""
        sides = self._sides(grid)
        counts_n = tokens_in_tiles(sides, grid, q.device).sum(1)
        agents, k_mean, v_mean = (_means(x, sides, grid, counts_n) for x in (q, k, v))
        if self.kind == "agent":
            gathered = F.scaled_dot_product_attention(agents, k, v, scale=scale)
            handed = agents
        else:
            gathered, handed = attend(agents, k_mean, v_mean, scale, counts_n.float().log()[None])[0], k_mean
        mixed = F.scaled_dot_product_attention(q, handed, gathered, scale=scale**self.sharpness)
        return mixed + self.shortcut * v if self.shortcut else mixed

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Both matrices of weights, written out."""
        tile_N = tile_of_token(self._sides(grid), grid, q.device)
        member_nN = (torch.arange(int(tile_N.max()) + 1, device=q.device)[:, None] == tile_N).to(q.dtype)
        means_nN = member_nN / member_nN.sum(1, keepdim=True)
        agents, keys, values, handed = means_nN @ q, k, v, means_nN @ q
        bias = torch.zeros(1, device=q.device, dtype=q.dtype)
        if self.kind == "proxy":
            keys, values, handed, bias = means_nN @ k, means_nN @ v, means_nN @ k, member_nN.sum(1).log()
        gathered = (agents @ keys.mT * scale + bias).softmax(-1) @ values
        return (q @ handed.mT * scale**self.sharpness).softmax(-1) @ gathered + self.shortcut * v

    def _sides(self, grid: Grid) -> tuple[int, ...]:
        return tuple(-(-size // self.cells) for size in grid.sizes)


def _means(x: Tensor, sides: tuple[int, ...], grid: Grid, counts_n: Tensor) -> Tensor:
    """The mean of each part of the grid (B, h, n, d)."""
    return (to_tiles(x, sides, grid).float().sum(3) / counts_n[:, None]).to(x.dtype)
