"""Large-kernel attention: each value is multiplied by a gate that a wide neighbourhood makes.

Guo et al., "Visual Attention Network", arXiv 2202.09741. The released module adds its input to its output and has a
GELU in front of the gate; neither has a place inside of an attention, and both are left out.

Shape legend: B batch, N tokens, C channels of the site, I = h * d channels inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blocks.base import AttentionWeights, FeatureMixer, Grid, Site, SiteSamples
from blocks.ops.owned import copied


class LargeKernelAttention(FeatureMixer):
    """W_o (u * g), u = W_v x; g is u through a depthwise, a dilated depthwise and a pointwise convolution.

    From a teacher it starts as attention of each token to itself, with a gate of one.

    Args:
        site: Where the mixer stands.
        kernel_size: Reach of both depthwise convolutions together, 21 as published.
        dilation: Of the second one; the first one has 2 * dilation - 1 taps a side, the second kernel_size / dilation,
            rounded up to odd.

    Raises:
        ValueError: A number is below 1.
    """

    served_axes = (2,)

    def __init__(self, site: Site, *, kernel_size: int = 21, dilation: int = 3) -> None:
        super().__init__(site)
        if kernel_size < 1 or dilation < 1:
            raise ValueError(
                f"kernel_size and dilation of LargeKernelAttention are {kernel_size!r} and {dilation!r}: give 1 or more"
            )
        self.kernel_size, self.dilation = kernel_size, dilation
        inner, near, far = site.heads * site.head_dim, 2 * dilation - 1, -(-kernel_size // dilation) // 2 * 2 + 1
        self.value, self.out = nn.Linear(site.channels, inner), nn.Linear(inner, site.channels)
        self.near = nn.Conv2d(inner, inner, near, padding=near // 2, groups=inner)
        self.far = nn.Conv2d(inner, inner, far, padding=far // 2 * dilation, groups=inner, dilation=dilation)
        self.gate = nn.Conv2d(inner, inner, 1)

    def flops(self, grid: Grid) -> int:
        """4 N C I of projections, 2 N I taps of depthwise convolutions, 2 N I^2 of the gate."""
        inner = self.site.heads * self.site.head_dim
        taps = self.near.kernel_size[0] ** 2 + self.far.kernel_size[0] ** 2
        return 2 * grid.tokens * inner * (2 * self.site.channels + taps + inner)

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C)."""
        value_BNI = self.value(hidden_BNC)
        image_BIHW = value_BNI.transpose(1, 2).unflatten(2, (grid.height, grid.width))
        gate_BNI = self.gate(self.far(self.near(image_BIHW))).flatten(2).transpose(1, 2)
        return self.out(value_BNI * gate_BNI)

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Take W_v and W_o, and let the gate be one."""
        copied(self.value, weights.value, weights.value_bias)
        copied(self.out, weights.out, weights.out_bias)
        nn.init.zeros_(self.gate.weight)
        assert self.gate.bias is not None
        nn.init.ones_(self.gate.bias)
