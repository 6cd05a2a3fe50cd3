"""What is left of an attention map when its low frequencies are taken out.

Each query's map over the grid is filtered by itself, in the discrete Fourier transform, as images are: by Butterworth's
gain of second order, 1 / (1 + (f0 / f)^4), with f0 at wavelengths of 8 tokens.

Shape legend: B batch, h heads, c queries, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.base import Grid

WAVELENGTH = 8.0
"""Tokens: the gain is a half there, near 1 for shorter waves, and near 0 for longer ones."""
ORDER = 2


def high_passed(weights: Tensor, grid: Grid) -> Tensor:
    """The high frequencies of maps (B, h, c, N); every one of them sums to 0."""
    axes = tuple(range(-len(grid.sizes), 0))
    spectrum = torch.fft.rfftn(weights.unflatten(-1, grid.sizes), dim=axes)
    spectrum.mul_(gain(grid).to(weights))
    return torch.fft.irfftn(spectrum, s=grid.sizes, dim=axes).flatten(-len(grid.sizes))


def gain(grid: Grid) -> Tensor:
    """The filter's gain for each frequency of a real transform, float64; 0 for the mean."""
    last = grid.sizes[-1]
    squared = torch.zeros(*grid.sizes[:-1], last // 2 + 1, dtype=torch.float64)
    for axis, size in enumerate(grid.sizes):
        waves = torch.fft.fftfreq(size, dtype=torch.float64).abs()[: squared.shape[axis]]
        squared += waves.square().view(-1, *[1] * (len(grid.sizes) - 1 - axis))
    powered = squared.pow(ORDER)
    return powered / (powered + WAVELENGTH ** (-2 * ORDER))
