"""HiP: each query finds its keys by halving chunks (Lee et al., arXiv 2406.09827).

Shape legend: B batch, Q queries, K keys, h heads, d channels of a head, M chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.edits.functions.minference import SparsePrompt
from blocks.tokens.attending import Attending


class HierarchicalPruning(SparsePrompt):
    """Each row sees ``keys`` keys, found by cutting chunks in half and keeping those whose middle goes best with it.

    After HiP: rows choose one by one where the paper's kernel lets blocks of rows choose together. Answers see all.

    Args:
        keys: How many keys each row sees, beside itself.
        layers: Where; everywhere if not given.
        heads: Which heads; all if not given.
    """

    def __init__(
        self, keys: int = 512, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
    ) -> None:
        super().__init__(layers, heads)
        if keys < 1:
            raise ValueError(f"keys is from 1; got {keys}")
        self.keys = keys

    def pattern(self, attending: Attending) -> Tensor:
        """The keys that are left when chunks hold one each."""
        allowed = attending.allowed.expand(-1, attending.query.shape[1], -1, -1)
        order = (~allowed).int().argsort(dim=-1, stable=True)  # seen keys first, in their order
        logits = attending.logits().detach().gather(-1, order)
        number = allowed.sum(-1, keepdim=True)
        edge = torch.arange(self.keys + 1, device=order.device) * number // self.keys
        start, stop = edge[..., :-1], edge[..., 1:]
        for _ in range(int((stop - start).amax()).bit_length()):
            middle = (start + stop) // 2
            start, stop = torch.cat([start, middle], -1), torch.cat([middle, stop], -1)
            told = logits.gather(-1, ((start + stop) // 2).clamp(max=logits.shape[-1] - 1))
            told = told.masked_fill(stop <= start, float("-inf"))
            kept = told.topk(self.keys, -1).indices
            start, stop = start.gather(-1, kept), stop.gather(-1, kept)
        inside = stop > start
        found = torch.zeros_like(logits, dtype=torch.int32)
        found.scatter_add_(-1, start.clamp(max=logits.shape[-1] - 1), inside.int())
        return torch.zeros_like(allowed).scatter(-1, order, found > 0) & allowed
