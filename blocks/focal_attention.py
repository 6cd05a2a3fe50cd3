"""Attention that is fine nearby and coarse elsewhere, in one call of torch's fused kernel.

Yang et al., "Focal Self-attention for Local-Global Interactions in Vision Transformers", arXiv 2107.00641, attend to
tokens around a window and to pooled windows. Here no token counts twice, and a pooled key weighs as many tokens as it
stands for, so that nothing has to be learned before it is near full attention.

It is ``blocks.Merge`` of a window and pooled keys, laid out for speed: all tokens of a tile see one block of tokens and
all cells, so both are rows of one table that is gathered once for keys and once for values.

Shape legend: B batch, h heads, N tokens, T tiles, a queries of a tile, c tokens of its block, P cells, M keys of a tile
(c + P, and masked ones up to a multiple of 16), d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import Grid, Site, SoftmaxMixer
from blocks.local_attention import checked_sides, on_axes
from blocks.ops.local import LocalPlan, block_axis
from blocks.ops.partial import Partial, attend
from blocks.ops.remembered import remembered
from blocks.ops.tiles import checked_tile, has_rest, tile_count, tile_of_token, tile_sides, tokens_in_tiles

_BLOCK = 16  # keys by which fused kernels count: they are a third slower on numbers that are no multiple


@dataclass(frozen=True)
class FocalPlan:
    """Who sees whom on a grid.

    Args:
        queries: Token of each query of a tile, (T * a,); those beyond the grid repeat another one.
        keys: Row of each key of a tile, (T * M,): tokens of its block, then all cells, which stand behind the tokens.
        bias: Added to a tile's logits: the log of the number of tokens that a key stands for, (T, 1, 1, M).
        far: One for cells and zero for the rest, (M,).
        place: Where each token stands among the queries, (N,).
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    far: Tensor
    place: Tensor


class FocalAttention(SoftmaxMixer):
    """One softmax over the tokens around a query's tile, and over the mean keys of cells, less what is around it.

    Args:
        site: Where the mixer stands.
        tile: Side of the tiles that the grid is cut into, or one for each of the last axes; their tokens see alike.
        halo: Tokens on either side of a tile that it sees, too. At a border the block moves inwards, and stays whole.
        cell: Side of a cell in tokens, or one for each of the last axes. Mean keys and values stand for its tokens.
        cells: Cut every axis into so many cells instead, at any size, which makes the cost linear; ``cell`` then counts
            for nothing. A grid that a tile covers is full attention, by torch's own kernel.
        learned_balance: Add a learned number per head to the logits of all cells. It starts at zero.

    Raises:
        ValueError: A number is out of range.
    """

    served_axes = (1, 2, 3)

    def __init__(
        self,
        site: Site,
        *,
        tile: int | Sequence[int] = 8,
        halo: int | Sequence[int] = 1,
        cell: int | Sequence[int] = 8,
        cells: int | None = None,
        learned_balance: bool = True,
    ) -> None:
        super().__init__(site)
        self.tile, self.cell = checked_tile(tile), checked_tile(cell)
        self.halo = checked_sides("halo", halo, 0)
        if cells is not None and cells < 1:
            raise ValueError(f"cells of FocalAttention is {cells!r}: give 1 or more for each axis, or none")
        self.cells, self.learned_balance = cells, learned_balance
        self.balance = nn.Parameter(torch.zeros(site.heads)) if learned_balance else None

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """One tile that covers the grid."""
        return {"tile": list(grid.sizes)}

    def is_attention(self, grid: Grid) -> bool:
        """Whether every tile sees the whole grid, so that nothing is left to cells."""
        return _block(tile_sides(self.tile, grid), self._halos(grid), grid) == grid.sizes

    def flops(self, grid: Grid) -> int:
        """Two products of every query of whole tiles with its block and all cells: 4 * T * a * M * h * d."""
        if self.is_attention(grid):
            return 4 * grid.tokens**2 * self.site.heads * self.site.head_dim
        sides = tile_sides(self.tile, grid)
        block = math.prod(_block(sides, self._halos(grid), grid))
        keys = -(-(block + tile_count(self._cell_sides(grid), grid)) // _BLOCK) * _BLOCK
        return 4 * tile_count(sides, grid) * math.prod(sides) * keys * self.site.heads * self.site.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors by torch's fused kernel."""
        if self.is_attention(grid) and not self._learns():
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
        plan = self._plan(grid, q.device)
        q_tiles, k_tiles, v_tiles = self._tiles(q, k, v, plan, grid)
        bias = self._bias(plan, len(q)).to(q.dtype)
        mixed = F.scaled_dot_product_attention(q_tiles, k_tiles, v_tiles, attn_mask=bias, scale=scale)
        return self._tokens(mixed, plan, len(q))

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Mix, and tell the log-sum-exp, balance included."""
        if self.is_attention(grid) and not self._learns():
            return attend(q, k, v, scale)
        plan = self._plan(grid, q.device)
        parts = attend(*self._tiles(q, k, v, plan, grid), scale, self._bias(plan, len(q)))
        output, lse = (self._tokens(part, plan, len(q)) for part in parts)
        return output, lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Attention over all tokens, each with the mean key and value of its cell where it is not in the block."""
        cell_N = tile_of_token(self._cell_sides(grid), grid, q.device)
        same_NN = cell_N[:, None] == cell_N
        averaging_NN = same_NN / same_NN.sum(1, keepdim=True).to(k.dtype)
        near_NN = self._near(grid, q.device)
        zero = q.new_zeros(self.site.heads) if self.balance is None else self.balance
        far_bias = torch.where(near_NN, -math.inf, zero[:, None, None].float())
        near_bias = torch.zeros_like(far_bias).masked_fill(~near_NN, -math.inf)
        keys, values = (torch.cat([x, averaging_NN @ x], 2) for x in (k, v))
        return attend(q, keys, values, scale, torch.cat([near_bias, far_bias], -1))

    def _near(self, grid: Grid, device: torch.device) -> Tensor:
        """Which tokens lie in the block of a query's tile, from positions alone: boolean (N, N)."""
        near = torch.ones(1, 1, dtype=torch.bool, device=device)
        sides = tile_sides(self.tile, grid)
        blocks = _block(sides, self._halos(grid), grid)
        for size, side, halo, block in zip(grid.sizes, sides, self._halos(grid), blocks, strict=True):
            position = torch.arange(size, device=device)
            first = (position // side * side - halo).clamp(0, size - block)[:, None]
            own = (position >= first) & (position < first + block)
            near = (near[:, None, :, None] & own[:, None]).flatten(2).flatten(0, 1)
        return near

    def _learns(self) -> bool:
        """Whether a loss must reach the balance, if only by zeros."""
        return self.balance is not None and self.balance.requires_grad and torch.is_grad_enabled()

    def _halos(self, grid: Grid) -> tuple[int, ...]:
        return on_axes(self.halo, grid, 0)

    def _cell_sides(self, grid: Grid) -> tuple[int, ...]:
        if self.cells is not None:
            return tuple(-(-size // self.cells) for size in grid.sizes)
        return tile_sides(self.cell, grid)

    def _plan(self, grid: Grid, device: torch.device) -> FocalPlan:
        return focal_plan(tile_sides(self.tile, grid), self._halos(grid), self._cell_sides(grid), grid, device)

    def _bias(self, plan: FocalPlan, batch: int) -> Tensor:
        """What is added to the logits of a tile, (B * T, h or 1, 1, M)."""
        bias = plan.bias
        if self.balance is not None:
            bias = bias + self.balance.float()[:, None, None] * plan.far
        return bias[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)

    def _tiles(self, q: Tensor, k: Tensor, v: Tensor, plan: FocalPlan, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B * T, h, a, d), and keys and values (B * T, h, M, d), from tokens (B, h, N, d)."""
        k_BRC, v_BRC = (torch.cat([x, self._means(x, grid)], 1) for x in (_rows(k), _rows(v)))
        shape = len(q) * plan.bias.shape[0], -1, *q.shape[1::2]

        def gathered(table_BRC: Tensor, rows: Tensor) -> Tensor:
            return table_BRC.index_select(1, rows).reshape(shape).transpose(1, 2)

        return gathered(_rows(q), plan.queries), gathered(k_BRC, plan.keys), gathered(v_BRC, plan.keys)

    @staticmethod
    def _tokens(x: Tensor, plan: FocalPlan, batch: int) -> Tensor:
        """Tokens (B, h, N, d) out of queries (B * T, h, a, d)."""
        rows = x.transpose(1, 2).reshape(batch, plan.queries.shape[0], -1).index_select(1, plan.place)
        return rows.unflatten(2, (x.shape[1], -1)).transpose(1, 2)

    def _means(self, x_BNC: Tensor, grid: Grid) -> Tensor:
        """Mean token of each cell, (B, P, C): a sum along each axis, which moves less than a pooling of all."""
        sides = self._cell_sides(grid)
        image = x_BNC.unflatten(1, grid.sizes)
        if has_rest(sides, grid):
            padded = [-size % side for side, size in zip(sides, grid.sizes, strict=True)]
            image = F.pad(image, (0, 0, *(n for pad in reversed(padded) for n in (0, pad))))
        for axis, side in enumerate(sides):
            image = image.unflatten(1 + axis, (-1, side)).sum(
                2 + axis, dtype=torch.promote_types(x_BNC.dtype, torch.float32)
            )
        return (image.flatten(1, -2) * _cell_shares(sides, grid, x_BNC.device)).to(x_BNC.dtype)


def _rows(x_BhNd: Tensor) -> Tensor:
    """Tokens with the channels of all heads, (B, N, h * d)."""
    return x_BhNd.transpose(1, 2).flatten(2)


@remembered
def focal_plan(
    tile: tuple[int, ...], halo: tuple[int, ...], cell: tuple[int, ...], grid: Grid, device: torch.device
) -> FocalPlan:
    """The plan of a grid, for tiles, halos and cells of these sides."""
    axes = [
        block_axis(size, tile=side, halo=wide, device=device)
        for size, side, wide in zip(grid.sizes, tile, halo, strict=True)
    ]
    local = LocalPlan(grid, axes)
    block_Tc, seen_Tc, cell_N = local.key_tokens(), local.mask()[:, 0], tile_of_token(cell, grid, device)
    tokens_P = tokens_in_tiles(cell, grid, device).sum(1)
    tiles, cells = block_Tc.shape[0], tokens_P.shape[0]
    inside = torch.zeros(tiles, cells, device=device)
    inside = inside.scatter_add(1, cell_N[block_Tc], seen_Tc.to(inside.dtype))
    tokens_TM = torch.cat([seen_Tc.float(), tokens_P - inside], 1)
    rows_TM = torch.cat([block_Tc, torch.arange(grid.tokens, grid.tokens + cells, device=device).expand(tiles, -1)], 1)
    far_M = (rows_TM[0] >= grid.tokens).float()
    rest = -rows_TM.shape[1] % _BLOCK
    rows_TM, tokens_TM, far_M = (F.pad(each, (0, rest)) for each in (rows_TM, tokens_TM, far_M))
    queries = local.query_tokens()
    rows = torch.arange(queries.numel(), device=device).reshape(1, 1, *queries.shape, 1)
    return FocalPlan(
        queries=queries.flatten(),
        keys=rows_TM.flatten(),
        bias=tokens_TM.log()[:, None, None],
        far=far_M,
        place=local.tokens(rows).flatten(),
    )


@remembered
def _cell_shares(sides: tuple[int, ...], grid: Grid, device: torch.device) -> Tensor:
    """One over the number of tokens of each cell, (P, 1)."""
    return 1 / tokens_in_tiles(sides, grid, device).sum(1, keepdim=True).float()


def _block(sides: tuple[int, ...], halos: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    """Sides of the block of tokens that a tile sees."""
    return tuple(min(side + 2 * halo, size) for side, halo, size in zip(sides, halos, grid.sizes, strict=True))
