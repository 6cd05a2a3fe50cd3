"""Several softmax mixers as one: each sees some of the keys, and all weights of a query still sum to one.

The outputs are averaged with the softmax of their log-sum-exps, which is exact (``blocks.ops.partial``).

Shape legend: B batch, h heads, N tokens, d channels of a head, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer, TokenMixer
from blocks.ops.partial import Partial, merge
from blocks.parts import made_parts, plain_part
from blocks.pooled_attention import PooledAttention
from blocks.softmax_attention import SoftmaxAttention
from blocks.tile_attention import TileAttention

_TILES: tuple[Callable[[Site], TokenMixer], ...] = (TileAttention, partial(PooledAttention, without_own=True))
_SAMPLE = 9  # tokens a side of the grid on which parts are compared: odd, so that few tiles divide it


class Merge(SoftmaxMixer):
    """One softmax over the keys of all its parts, which must not share any, unless that is meant.

    Args:
        site: Where the mixer stands.
        parts: The softmax mixers; if not given, ``TileAttention`` and ``PooledAttention`` without a query's own tile.
        learned_balance: Add a learned number per head to the log-sum-exp of every part but the first. It starts at
            zero, which is the plain softmax.
        balance_penalty: Weight of the mean square of these numbers in the loss, which holds them near the plain
            softmax.
        shared_keys: Parts may see a key twice, as discs and pooled keys do in CLEAR.

    Raises:
        ValueError: The penalty is negative, there is no part, one has no ``partial``, or two
            see one key.
    """

    def __init__(
        self,
        site: Site,
        *,
        parts: Sequence[Callable[[Site], TokenMixer]] | None = None,
        learned_balance: bool = True,
        balance_penalty: float = 0.0,
        shared_keys: bool = False,
    ) -> None:
        super().__init__(site)
        if not 0 <= balance_penalty < math.inf:
            raise ValueError(f"balance_penalty of Merge is {balance_penalty!r}: give 0 or more")
        parts = _TILES if parts is None else parts
        self.mixers: Any = made_parts("Merge", parts, [site] * len(parts))
        for position, mixer in enumerate(self.mixers):
            if not mixer.is_softmax:
                raise ValueError(
                    f"parts.{position} of Merge is {type(mixer).__name__}, which has no partial: it cannot tell the "
                    "mass of its keys"
                )
        self.parts = [plain_part(mixer) for mixer in self.mixers]
        self.learned_balance, self.balance_penalty = learned_balance, balance_penalty
        more = len(self.mixers) - 1
        self.balance = nn.Parameter(torch.zeros(more, site.heads)) if learned_balance and more else None
        self.shared_keys = shared_keys
        if not shared_keys:
            self._refuse_shared_keys()

    @property
    def served_axes(self) -> Collection[int]:  # type: ignore[override]
        """Those that every part serves."""
        return set.intersection(*(set(mixer.served_axes) for mixer in self.mixers))

    @property
    def has_product_logits(self) -> bool:
        """Whether those of every part are products."""
        return all(mixer.has_product_logits for mixer in self.mixers)

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """All keys in one part."""
        return {"parts": [plain_part(SoftmaxAttention(site))], "learned_balance": False}

    def flops(self, grid: Grid) -> int:
        """Those of the parts."""
        return sum(mixer.flops(grid) for mixer in self.mixers)

    def auxiliary_loss(self) -> Tensor | None:
        """The penalty of a balance away from zero."""
        if self.balance is None or self.balance_penalty == 0:
            return None
        return self.balance_penalty * self.balance.float().square().mean()

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """The union of the parts with its log-sum-exp, balance included."""
        return merge(self._balanced([mixer(q, k, v, grid, scale, mass=True) for mixer in self.mixers]))

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """The parts' references, weighted by their masses in float64."""
        parts = self._balanced([mixer.reference(q, k, v, grid, scale) for mixer in self.mixers])
        masses = [lse.double().exp() for _, lse in parts]
        total = torch.stack(masses).sum(0)
        weighted = torch.stack([out.double() * mass for (out, _), mass in zip(parts, masses, strict=True)]).sum(0)
        return (weighted / total.clamp_min(torch.finfo(total.dtype).tiny)).to(v.dtype), total.log().float()

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Let every part start from the whole teacher."""
        for mixer in self.mixers:
            mixer.init_from_teacher(weights, samples)

    def _balanced(self, parts: Sequence[Partial]) -> list[Partial]:
        if self.balance is None:
            return list(parts)
        more = self.balance.float()[:, None, :, None, None]
        return [parts[0], *((output, lse + b) for (output, lse), b in zip(parts[1:], more, strict=True))]

    @torch.no_grad()
    def _refuse_shared_keys(self) -> None:
        """Compare parts on a small grid: where all logits are equal, the weight of a key is how often it is seen."""
        if any(tensor.is_meta for tensor in self.state_dict().values()):
            return  # made without memory, by what loads a model that was compared when it was made
        grid = Grid(*(min(size, _SAMPLE) for size in self.site.grid.sizes))
        dim, tokens = self.site.head_dim, grid.tokens
        one_hot = torch.eye(tokens, device="cpu")
        one_hot = torch.nn.functional.pad(one_hot, (0, -tokens % dim)).unflatten(1, (-1, dim)).transpose(0, 1)
        v = one_hot[:, None].expand(-1, self.site.heads, -1, -1)
        q = torch.zeros_like(v)
        seen = []
        for mixer in self.mixers:
            output, lse = mixer.partial(q, q, v, grid, 1.0)
            seen.append((output * lse.exp()).transpose(0, 2).flatten(2))  # (N, h, N)
        for position, each in enumerate(seen):
            for other in range(position):
                if any(self.mixers[a].left_out == self.parts[b] for a, b in ((position, other), (other, position))):
                    continue  # what is left of a pooled key still shows the mean of all of its tokens
                if float((each + seen[other]).max()) > 1.01 and float(torch.minimum(each, seen[other]).max()) > 0.01:
                    names = " and ".join(f"parts.{at} ({type(self.mixers[at]).__name__})" for at in (other, position))
                    raise ValueError(
                        f"{names} of Merge see one key twice: parts must share none, as TileAttention and "
                        "PooledAttention with without_own of the same tiles"
                    )
