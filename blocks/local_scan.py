"""Windows beside a selective scan: the windows see near tokens exactly, and the scan carries what is far.

Fu et al., "LaMamba-Diff: Linear-Time High-Fidelity Diffusion Models Based on Local Attention and Mamba", arXiv
2408.02615; Liu et al., "VMamba", arXiv 2401.10166 (rows and columns, forward and back). There, both follow each other
as blocks of a network; here they are added, in the place of one attention.

Shape legend: B batch, N tokens, C channels of the site, h heads, d channels of a head, I channels of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, FeatureMixer, Grid, Site, SiteSamples
from blocks.ops.features import without_autocast
from blocks.ops.owned import copied
from blocks.ops.selective_scan import CHUNK, selective_scan, walked
from blocks.window_attention import WindowAttention

_DIRECTIONS = 4


class LocalScan(FeatureMixer):
    """W_o windows(W_q x, W_k x, W_v x) + W_s (scans of W_i x, times SiLU of a gate); W_s starts at zero.

    The scan goes over rows and over columns, forward and back. Queries and keys are normalised by nothing, as in
    attentions without norms; where the teacher has norms its windows are another thing until they are trained.

    Args:
        site: Where the mixer stands.
        window: Side of the windows, which are shifted by half on half of the heads.
        width: Channels of the scan as a share of C; 2 as published.

    Raises:
        ValueError: The width is not positive.
    """

    served_axes = (2,)

    def __init__(self, site: Site, *, window: int = 8, width: float = 1.0) -> None:
        super().__init__(site)
        if width <= 0:
            raise ValueError(f"width of LocalScan is {width!r}: give a share of the channels above 0")
        self.window, self.width = window, width
        inner, channels = site.heads * site.head_dim, max(1, round(width * site.channels))
        self.windows = WindowAttention(site, window=window, shifts=(0.0, 0.5) if site.heads > 1 else (0.0,))
        self.query, self.key, self.value = (nn.Linear(site.channels, inner) for _ in range(3))
        self.out = nn.Linear(inner, site.channels)
        self.entry, self.exit = nn.Linear(site.channels, 2 * channels), nn.Linear(channels, site.channels)
        self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.told = nn.Linear(channels, _DIRECTIONS * (channels + 2))
        self.rate = nn.Parameter(torch.zeros(_DIRECTIONS, channels))
        self.norm = nn.LayerNorm(channels)
        self.scale = site.head_dim**-0.5
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)
        nn.init.constant_(self.told.bias, -2.0)

    def flops(self, grid: Grid) -> int:
        """8 N C h d of projections, those of windows, 6 N C I + 8 N I (I + 2) of the scan, 8 N c I of chunks."""
        tokens, channels, scan = grid.tokens, self.site.channels, self.entry.out_features // 2
        layers = 6 * channels * scan + 18 * scan + 2 * scan * self.told.out_features
        chunks = 2 * _DIRECTIONS * -(-tokens // CHUNK) * CHUNK**2 * scan
        return (
            8 * tokens * channels * self.site.heads * self.site.head_dim
            + self.windows.flops(grid)
            + tokens * layers
            + chunks
        )

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C)."""
        return self._mapped(hidden_BNC, grid, selective_scan)

    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """As :meth:`forward`, with scans that go token by token."""
        return self._mapped(hidden_BNC, grid, walked)

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Take the teacher's projections for the windows, and its scale into those of the queries."""
        factor = weights.scale / self.scale
        bias = None if weights.query_bias is None else weights.query_bias * factor
        copied(self.query, weights.query * factor, bias)
        copied(self.key, weights.key, weights.key_bias)
        copied(self.value, weights.value, weights.value_bias)
        copied(self.out, weights.out, weights.out_bias)

    def _mapped(self, hidden_BNC: Tensor, grid: Grid, scan: Callable[..., Tensor]) -> Tensor:
        heads = (self.site.heads, -1)
        q, k, v = (
            layer(hidden_BNC).unflatten(-1, heads).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        near_BNC = self.out(self.windows(q, k, v, grid, self.scale).transpose(1, 2).flatten(2))
        x_BNI, gate_BNI = self.entry(hidden_BNC).chunk(2, -1)
        image_BIHW = self.near(x_BNI.unflatten(1, grid.sizes).movedim(-1, 1))
        x_BNI = F.silu(image_BIHW).flatten(2).transpose(1, 2)
        with without_autocast(x_BNI):
            scanned_BNI = self._scanned(x_BNI, grid, scan).to(x_BNI.dtype)
        return near_BNC + self.exit(self.norm(scanned_BNI) * F.silu(gate_BNI))

    def _scanned(self, x_BNI: Tensor, grid: Grid, scan: Callable[..., Tensor]) -> Tensor:
        """Scans in four directions, added; in float32."""
        channels = x_BNI.shape[-1]
        told = self.told(x_BNI).float().chunk(_DIRECTIONS, -1)
        total = torch.zeros_like(x_BNI, dtype=torch.float32)
        for number, (each, rate_I) in enumerate(zip(told, self.rate.float().exp(), strict=True)):
            step, into, out = each.split([channels, 1, 1], -1)
            parts = [x_BNI.float(), F.softplus(step), into, out]
            if number >= 2:
                parts = [_turned(part, grid) for part in parts]
            if number % 2:
                parts = [part.flip(1) for part in parts]
            x, step, into, out = parts
            scanned = scan(x, step, rate_I, into, out)
            scanned = scanned.flip(1) if number % 2 else scanned
            total = total + (_turned(scanned, Grid(grid.width, grid.height)) if number >= 2 else scanned)
        return total


def _turned(x_BNI: Tensor, grid: Grid) -> Tensor:
    """Tokens by columns."""
    return x_BNI.unflatten(1, grid.sizes).transpose(1, 2).flatten(1, 2)
