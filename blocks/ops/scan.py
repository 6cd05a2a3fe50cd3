"""Linear attention whose weights decay with the distance along a sequence, in both directions, by a plain scan.

Qin et al., "Lightning Attention-2", arXiv 2401.04658: inside a chunk by products of queries and keys, between chunks by
a state that decays. Here a token counts once, whichever side it lies on.

Shape legend: B batch, h heads, N tokens, f features, d channels, T chunks, c tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 64


def chunk_of(tokens: int) -> int:
    """Tokens of a chunk."""
    return min(_CHUNK, tokens)


def decayed(q: Tensor, k: Tensor, v: Tensor, log_decay_h: Tensor) -> Tensor:
    """Sum over j of exp(log_decay |i - j|) (q_i . k_j) v_j, for every i.

    Args:
        q: Features of queries (B, h, N, f).
        k: Features of keys (B, h, N, f).
        v: Values (B, h, N, d).
        log_decay_h: Of each head, below zero.
    """
    tokens = q.shape[2]
    size = chunk_of(tokens)
    q, k, v = (F.pad(x, (0, 0, 0, -tokens % size)).unflatten(2, (-1, size)) for x in (q, k, v))
    log_decay = log_decay_h[:, None, None]
    step = torch.arange(size, device=q.device)
    inside = (log_decay * (step[:, None] - step).abs()).exp()[:, None]
    output = (q @ k.mT * inside) @ v
    before, behind = (log_decay_h[:, None] * (step + 1)).exp(), (log_decay_h[:, None] * (size - 1 - step)).exp()
    across = (log_decay * size).exp()
    output = output + _from_chunks_before(q, k, v, before, behind, across)
    q, k, v = (x.flip(2, 3) for x in (q, k, v))
    output = output + _from_chunks_before(q, k, v, before, behind, across).flip(2, 3)
    return output.flatten(2, 3)[:, :, :tokens]


def _from_chunks_before(
    q: Tensor, k: Tensor, v: Tensor, before_hc: Tensor, behind_hc: Tensor, across_h11: Tensor
) -> Tensor:
    """What each chunk takes from all before it, (B, h, T, c, d)."""
    sums = (k * behind_hc[:, None, :, None]).mT @ v
    state, states = torch.zeros_like(sums[:, :, 0]), []
    for chunk in sums.unbind(2):
        states.append(state)
        state = state * across_h11 + chunk
    return (q * before_hc[:, None, :, None]) @ torch.stack(states, 2)
