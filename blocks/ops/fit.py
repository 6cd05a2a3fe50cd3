"""A short fit of a mixer's parameters to what a teacher's attention mixes on real batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, Grid, SiteSamples
from blocks.ops.partial import merge

_STEPS = 60
_RATE = 2e-2
_FAR = 0.1  # relative error of what the projections say
_TOKENS = 1 << 12  # that a fit holds, to bound its memory and time


@dataclass(frozen=True)
class ToldCore:
    """What a teacher's core took and gave on real batches: (B, h, N, d) in float32 on one grid."""

    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    grid: Grid


def fitted(mixer: Any, weights: AttentionWeights, samples: Sequence[SiteSamples], *, beside: Any = None) -> None:
    """Adam on the relative error of each head's output; nothing without parameters or samples.

    Args:
        mixer: A core mixer; changed in place, and left at the best of all steps.
        weights: The teacher's projections.
        samples: What it saw; those on the first one's grid count.
        beside: A mixer of other keys that it stands beside, under one softmax.
    """
    parameters = [parameter for parameter in mixer.parameters() if parameter.requires_grad]
    core = told_core(mixer, weights, samples) if parameters else None
    if core is None:
        return
    inputs = (core.q, core.k, core.v, core.grid, weights.scale)
    power_h11 = core.output.square().mean((0, 2, 3), keepdim=True).clamp(min=1e-12)
    near = None if beside is None else beside.partial(*inputs)

    def error() -> Tensor:
        output = mixer(*inputs) if near is None else merge([near, mixer.partial(*inputs)])[0]
        return ((output - core.output).square() / power_h11).mean()

    lowered(parameters, error)


def told_core(mixer: Any, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> ToldCore | None:
    """What the core took and gave, as far as the samples tell.

    None where there are no samples, or where the teacher does more between projections and core than is told here, in
    a processor of its own: what it returned is then another thing than what its projections say.

    Args:
        mixer: A core mixer with parameters, on whose device it is told.
        weights: The teacher's projections.
        samples: What it saw; those on the first one's grid count.
    """
    device = next((parameter.device for parameter in mixer.parameters()), None)
    if not samples or device is None:
        return None
    grid = samples[0].grid
    hidden_BNC = torch.cat([sample.inputs for sample in samples if sample.grid == grid])
    hidden_BNC = hidden_BNC[: max(1, _TOKENS // grid.tokens)].to(weights.query)
    q, k, v = (x.float().to(device) for x in weights.projected(hidden_BNC, mixer.site.heads, samples[0].positions))
    target = F.scaled_dot_product_attention(q, k, v, scale=weights.scale)
    outputs = torch.cat([sample.outputs for sample in samples if sample.grid == grid])[: len(hidden_BNC)]
    told = F.linear(target.transpose(1, 2).flatten(2).to(weights.out), weights.out, weights.out_bias).to(outputs)
    if (told - outputs).norm() > _FAR * outputs.norm():
        return None
    return ToldCore(q, k, v, target, grid)


def lowered(parameters: Sequence[nn.Parameter], error: Callable[[], Tensor]) -> None:
    """Some steps of Adam on an error; the parameters are left at the best of all steps, frozen where they were."""
    best, kept = torch.inf, [parameter.detach().clone() for parameter in parameters]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        optimizer = torch.optim.Adam(parameters, lr=_RATE)
        for _ in range(_STEPS):
            loss = error()
            if not loss.requires_grad:  # of a mixer that learns nothing but its mass beside text
                break
            if float(loss.detach()) < best:
                best, kept = float(loss.detach()), [parameter.detach().clone() for parameter in parameters]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    for parameter in frozen:
        parameter.requires_grad_(False)
