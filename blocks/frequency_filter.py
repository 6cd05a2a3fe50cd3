"""Adaptive frequency filter: a circular convolution whose kernel each image makes for itself, by way of its spectrum.

Huang et al., "Adaptive Frequency Filters As Efficient Global Token Mixers", arXiv 2307.14008. Transforms are in
float32, since they have no bfloat16 form and float16 has only some sizes. Opposite borders are neighbours, as
published.

Shape legend: B batch, N tokens, C channels of the site, I = h * d channels inside, F frequencies, g groups, b channels
of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, FeatureMixer, Grid, Site, SiteSamples
from blocks.ops.features import without_autocast
from blocks.ops.owned import copied

_SHRINK = 0.01  # below this the mask is zero, as published


class FrequencyFilter(FeatureMixer):
    """W_o (v + F^-1(m * F v)), v = W_v x; the mask m is made of the spectrum F v by two layers in groups of channels.

    Args:
        site: Where the mixer stands.
        groups: Of channels that make a mask together; must divide h * d.

    Raises:
        ValueError: It does not.
    """

    served_axes = (1, 2, 3)

    def __init__(self, site: Site, *, groups: int = 8) -> None:
        super().__init__(site)
        inner = site.heads * site.head_dim
        if groups < 1 or inner % groups:
            raise ValueError(
                f"groups of FrequencyFilter is {groups!r}, and {site.path} has {inner} channels of values: give a "
                "number that divides them"
            )
        self.groups = groups
        self.value, self.out = nn.Linear(site.channels, inner), nn.Linear(inner, site.channels)
        width = inner // groups
        self.weight = nn.Parameter(0.02 * torch.randn(2, 2, groups, width, width))  # layer, real and imaginary
        self.bias = nn.Parameter(0.02 * torch.randn(2, 2, groups, 1, width))

    def flops(self, grid: Grid) -> int:
        """4 N C I of projections, 16 F I b of the masks; transforms, about 5 N log2(N) I, are not counted."""
        inner = self.site.heads * self.site.head_dim
        frequencies = math.prod(grid.sizes[:-1]) * (grid.width // 2 + 1)
        return 4 * grid.tokens * self.site.channels * inner + 16 * frequencies * inner * (inner // self.groups)

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C)."""
        value_BNI = self.value(hidden_BNC)
        with without_autocast(value_BNI):
            spectrum = self._spectrum(value_BNI, grid)
            filtered_BNI = self._image(self._mask(spectrum, grid) * spectrum, grid)
        return self.out(value_BNI + filtered_BNI.to(value_BNI.dtype))

    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """The convolution written out: every token takes from every other by their distance around the borders."""
        value_BNI = self.value(hidden_BNC)
        kernel_BNI = self._image(self._mask(self._spectrum(value_BNI, grid), grid), grid)
        sides = [torch.arange(size, device=value_BNI.device) for size in grid.sizes]
        places = [place.flatten() for place in torch.meshgrid(*sides, indexing="ij")]
        apart_NN = torch.zeros(grid.tokens, grid.tokens, dtype=torch.long, device=value_BNI.device)
        for place, size in zip(places, grid.sizes, strict=True):
            apart_NN = apart_NN * size + (place[:, None] - place) % size
        filtered_BNI = torch.einsum("bnmi,bmi->bni", kernel_BNI[:, apart_NN], value_BNI.float())
        return self.out(value_BNI + filtered_BNI.to(value_BNI.dtype))

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Take W_v and W_o; a mask of zero could not learn, and stays as small as it is."""
        copied(self.value, weights.value, weights.value_bias)
        copied(self.out, weights.out, weights.out_bias)

    @staticmethod
    def _spectrum(value_BNI: Tensor, grid: Grid) -> Tensor:
        axes = tuple(range(1, 1 + len(grid.sizes)))
        return torch.fft.rfftn(value_BNI.float().unflatten(1, grid.sizes), dim=axes)

    @staticmethod
    def _image(spectrum: Tensor, grid: Grid) -> Tensor:
        axes = tuple(range(1, 1 + len(grid.sizes)))
        return torch.fft.irfftn(spectrum, s=grid.sizes, dim=axes).flatten(1, -2)

    def _mask(self, spectrum: Tensor, grid: Grid) -> Tensor:
        """The factor of every frequency and channel; made of a spectrum whose scale does not depend on the grid."""
        by_group = (spectrum / grid.tokens**0.5).flatten(1, -2).unflatten(2, (self.groups, -1)).transpose(1, 2)
        real, imaginary = self._layer(0, by_group.real, by_group.imag)
        real, imaginary = self._layer(1, real.relu(), imaginary.relu())
        mask = torch.complex(F.softshrink(real, _SHRINK), F.softshrink(imaginary, _SHRINK))
        return mask.transpose(1, 2).flatten(2).reshape(spectrum.shape)

    def _layer(self, number: int, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """A complex linear layer in groups."""
        (w_real, w_imaginary), (b_real, b_imaginary) = self.weight[number].float(), self.bias[number].float()
        return (
            real @ w_real - imaginary @ w_imaginary + b_real,
            real @ w_imaginary + imaginary @ w_real + b_imaginary,
        )
