"""No token mixing at all: every token is mapped by itself. The control that any mixer worth its name must beat.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blocks.base import AttentionWeights, FeatureMixer, Grid, Site, SiteSamples

_RIDGE = 1e-3  # of the mean square of the inputs


class NoMixing(FeatureMixer):
    """One linear map of each token, W_o W_v to begin with: attention in which every token attends to itself alone."""

    served_axes = (1, 2, 3)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.linear = nn.Linear(site.channels, site.channels)

    def flops(self, grid: Grid) -> int:
        """One product of N x C with C x C."""
        return 2 * grid.tokens * self.site.channels**2

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map every token (B, N, C) to the site's output (B, N, C)."""
        return self.linear(hidden_BNC)

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Start from W_o W_v, and with samples from the ridge regression of the outputs towards that prior."""
        device = self.linear.weight.device
        prior_CC = (weights.out.double() @ weights.value.double()).to(device)
        bias_C = torch.zeros_like(prior_CC[:, 0])
        if weights.value_bias is not None:
            bias_C += (weights.out.double() @ weights.value_bias.double()).to(device)
        if weights.out_bias is not None:
            bias_C += weights.out_bias.double().to(device)
        size = self.site.channels + 1
        gram, target = prior_CC.new_zeros(size, size), prior_CC.new_zeros(size, size - 1)
        for sample in samples:
            inputs_NC = sample.inputs.flatten(0, 1).to(prior_CC)
            left_NC = sample.outputs.flatten(0, 1).to(prior_CC) - (inputs_NC @ prior_CC.T + bias_C)
            columns = torch.cat([inputs_NC, torch.ones_like(inputs_NC[:, :1])], 1)
            gram += columns.T @ columns
            target += columns.T @ left_NC
        ridge = torch.full_like(gram[0], _RIDGE * float(gram.diagonal()[:-1].mean())).clamp(min=1e-9)
        ridge[-1] = 1e-9
        correction = torch.linalg.solve(gram + ridge.diag(), target)
        self.linear.weight.copy_(prior_CC + correction[:-1].T)
        self.linear.bias.copy_(bias_C + correction[-1])
