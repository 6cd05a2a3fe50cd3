"""Core Context Aware attention: what lies far is seen as one core token for each group (Chen et al., arXiv 2412.12465).

Shape legend: B batch, Q queries, K keys, h heads, g heads of keys, n heads that share keys (h = g n), d channels of a
head, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.edits.base import AttentionFunction, Kernel, within_layers
from blocks.tokens.attending import Attending
from blocks.tokens.token_map import ANSWER, TokenMap


class CoreContext(AttentionFunction):
    """Rows see tokens near them one by one, and before those one core token in place of each group (CCA).

    A core is a mixture of its group, weighted by how the group's last token attends inside it: of values, and of keys
    as their positions have turned them. Groups are counted from a sample's first token and lie in the prompt; the
    answer, and what does not fill a group, is seen token by token. Where heads share keys they share cores, by the mean
    of their weights. A model should be trained with it. The result without the saved memory: caches hold all tokens.

    Args:
        group: Tokens of a group.
        near: How many last tokens, the row's own among them, are no part of any core.
        layers: Where; everywhere if not given.
    """

    def __init__(self, group: int = 16, near: int = 1024, layers: Sequence[int] | None = None) -> None:
        if group < 2 or near < 1:
            raise ValueError(f"group is from 2 and near from 1; got {group} and {near}")
        self.group, self.near = group, near
        self.layers = None if layers is None else sorted(layers)

    def at(self, layer: int, depth: int) -> bool:
        """At the layers named."""
        return within_layers(self.layers, layer)

    def measure(self, attending: Attending, layer: int) -> Tensor:
        """What each token of the prompt weighs in its core, and the number of that from 1 on (B, K, g + 1)."""
        weight, number, _ = self.pooling(attending)
        return torch.cat([weight, number[..., None] + 1.0], -1)

    def attend(self, kernel: Kernel, attending: Attending, value: Tensor, layer: int) -> Tensor:
        """The kernel's over cores and tokens."""
        asked = attending.queries.present & (attending.queries.kind != ANSWER)
        if bool(asked.any()):  # gradients pass through the weights where the prompt is read
            weight, number, count = self.pooling(attending.prompt())
            more = value.shape[2] - weight.shape[1]
            weight, number = F.pad(weight, (0, 0, 0, more)), F.pad(number, (0, more), value=-1)
        else:
            assert attending.marks is not None
            weight, number = attending.marks[..., :-1], attending.marks[..., -1].long() - 1
            count = int(number.amax()) + 1
        if not count:
            return kernel(attending, value)
        keys, queries = attending.keys, attending.queries
        member = number[:, None] == torch.arange(count, device=number.device)[:, None]  # (B, G, K)
        mixing = (member[:, None] * weight.transpose(1, 2)[:, :, None]).to(value)  # (B, g, G, K)
        rank = keys.present.cumsum(1)
        last = torch.where(member, rank[:, None], 0).amax(-1)
        own = (keys.present[:, None] & (keys.place[:, None] <= queries.place[:, :, None])).sum(-1)
        far = own[:, :, None] - last[:, None] >= self.near  # (B, Q, G)
        whole = member.sum(-1) == self.group  # caches of sliding windows forget tokens
        blocked = (~attending.allowed).to(value) @ member[:, None].to(value).transpose(2, 3)  # hidden tokens of a core
        core = (far & whole[:, None])[:, None] & (blocked == 0)
        apart = (core.to(value) @ member[:, None].to(value)) == 0
        told = attending._replace(
            key=torch.cat([mixing @ attending.key, attending.key], 2),
            allowed=torch.cat([core, attending.allowed & apart], -1),
        )
        return kernel(told, torch.cat([mixing @ value, value], 2))

    def numbered(self, keys: TokenMap) -> tuple[Tensor, int]:
        """The whole group of the prompt (B, K) that each token is in, -1 for none, and how many the longest has."""
        asked = keys.present & (keys.kind != ANSWER)
        rank = asked.cumsum(1) - 1
        whole = asked.sum(1, keepdim=True) // self.group
        number = rank.div(self.group, rounding_mode="floor")
        return torch.where(asked & (number < whole), number, -1), int(whole.max())

    def pooling(self, attending: Attending) -> tuple[Tensor, Tensor, int]:
        """Weights (B, K, g) of tokens in their cores: softmax, in each group, of what its last token asks.

        And what ``numbered`` says.
        """
        number, count = self.numbered(attending.keys)
        asked = attending.keys.present & (attending.keys.kind != ANSWER)
        order = torch.argsort(~asked, dim=1, stable=True)  # the prompt's tokens, first to last
        last = (number.clamp(min=0) + 1) * self.group - 1
        place = order.gather(1, last.clamp(max=order.shape[1] - 1))
        query, key = attending.query, attending.key
        shared = query.shape[1] // key.shape[1]
        asks = query.gather(2, place[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1]))
        logits = (asks * key.repeat_interleave(shared, 1)).sum(-1).float() * attending.scaling  # (B, h, K)
        if attending.softcap is not None:
            logits = attending.softcap * torch.tanh(logits / attending.softcap)
        where = torch.where(number < 0, count, number)[:, None].expand_as(logits)
        top = logits.new_full((*logits.shape[:2], count + 1), -torch.inf)
        top = top.scatter_reduce(2, where, logits.detach(), "amax")
        raised = (logits - top.gather(2, where)).exp()
        total = raised.new_zeros(top.shape).scatter_add(2, where, raised)
        weight = (raised / total.gather(2, where)) * (number >= 0)[:, None]
        return weight.unflatten(1, (key.shape[1], shared)).mean(2).transpose(1, 2), number, count
