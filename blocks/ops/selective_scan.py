"""A selective scan in plain torch: a state of each channel that decays and takes in by what each token says.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, with a state of one
number a channel. Chunks are computed at once, with the decay between each pair of their tokens, and the state walks
over chunks.

Shape legend: B batch, N tokens, I channels, T chunks, c tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16


def selective_scan(x_BNI: Tensor, step_BNI: Tensor, rate_I: Tensor, into_BN1: Tensor, out_BN1: Tensor) -> Tensor:
    """h_t = exp(-rate step_t) h_(t-1) + step_t into_t x_t, and out_t h_t of every token (B, N, I).

    Args:
        x_BNI: Tokens.
        step_BNI: How far time goes on at each, positive.
        rate_I: Decay of each channel, positive.
        into_BN1: How much of a token enters the state.
        out_BN1: How much of the state leaves.
    """
    tokens = x_BNI.shape[1]
    more = (0, 0, 0, -tokens % CHUNK)
    decay, taken = (
        F.pad(each, more).unflatten(1, (-1, CHUNK)) for each in (step_BNI * rate_I, step_BNI * into_BN1 * x_BNI)
    )
    passed = decay.cumsum(2)
    earlier = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x_BNI.device).tril()[..., None]
    apart = (passed[:, :, None] - passed[:, :, :, None]).transpose(2, 3)  # of a token (third axis) from an earlier one
    kept = torch.where(earlier, (-apart.clamp(min=0)).exp(), 0.0)
    states = torch.einsum("btijc,btjc->btic", kept, taken)
    carried, entering = torch.zeros_like(states[:, 0, 0]), []
    for last, whole in zip(states[:, :, -1].unbind(1), passed[:, :, -1].unbind(1), strict=True):
        entering.append(carried)
        carried = carried * (-whole).exp() + last
    states = states + (-passed).exp() * torch.stack(entering, 1)[:, :, None]
    return states.flatten(1, 2)[:, :tokens] * out_BN1


def walked(x_BNI: Tensor, step_BNI: Tensor, rate_I: Tensor, into_BN1: Tensor, out_BN1: Tensor) -> Tensor:
    """As :func:`selective_scan`, one token after the other."""
    state, outputs = torch.zeros_like(x_BNI[:, 0]), []
    for x, step, into, out in zip(*(each.unbind(1) for each in (x_BNI, step_BNI, into_BN1, out_BN1)), strict=True):
        state = state * (-step * rate_I).exp() + step * into * x
        outputs.append(out * state)
    return torch.stack(outputs, 1)
