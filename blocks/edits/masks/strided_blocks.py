"""S2-Attention: local blocks, and every so many blocks another one for each head (Lin et al., arXiv 2407.17678).

Shape legend: B batch, Q queries, K keys, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.edits.base import MaskProgram, Where
from blocks.edits.masks.shifted_groups import ranks
from blocks.tokens.token_map import TokenMap


class StridedBlocks(MaskProgram):
    """Each head sees the last blocks, and of the earlier ones every ``stride``-th, from another one on (S2-Attention).

    All heads together see everything. Blocks are counted from the first token of a sample, so that padding on either
    side changes nothing. A mask gives the result; the speed needs the authors' kernels.

    Args:
        block: Tokens of a block.
        local: How many last blocks a token sees, its own among them.
        stride: Of earlier blocks.
        dense: How many first heads see everything.
        shift: By how many blocks heads differ.
        first_layer: The first layer that is changed.
    """

    def __init__(
        self, block: int = 64, local: int = 16, stride: int = 8, dense: int = 0, shift: int = 1, first_layer: int = 0
    ) -> None:
        if min(block, local, stride) < 1 or min(dense, shift, first_layer) < 0:
            raise ValueError(
                f"block, local and stride are from 1, dense, shift and first_layer from 0; got {block}, {local}, "
                f"{stride}, {dense}, {shift}, {first_layer}"
            )
        self.block, self.local, self.stride, self.dense = block, local, stride, dense
        self.shift, self.first_layer = shift, first_layer

    def at(self, layer: int, depth: int) -> bool:
        """From the first layer that is changed."""
        return layer >= self.first_layer

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """What was allowed in the blocks of each head."""
        looks, seen = (ranks(tokens, where) // self.block for tokens in (queries, keys))
        near = (looks[:, :, None] - seen[:, None] < self.local)[:, None]
        head = torch.arange(where.heads, device=allowed.device)
        picked = (seen[:, None] + self.shift * head[:, None]) % self.stride == 0
        far = picked[:, :, None] | (head < self.dense)[:, None, None]
        return allowed & (near | far)
