"""Gates on a feature mixer: published as attention modules, they mix no tokens, and weigh what something else mixes.

Xu and Wan, "ELA: Efficient Local Attention", arXiv 2403.01123; Liu et al., "Polarized Self-Attention", arXiv
2107.00782; Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module", arXiv 2006.15102; Ioannides et al.,
"Gaussian Adaptive Attention Is All You Need" (GAAM), arXiv 2401.11143, whose product of densities, which underflows, is
a sum of logarithms here. Every gate starts as one. Batch norms of ULSAM are left out: they would mix a batch's images.

Shape legend: B batch, N tokens, C channels, g groups of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, FeatureMixer, Grid, Site, SiteSamples, TokenMixer
from blocks.no_mixing import NoMixing
from blocks.parts import made_part, plain_part

_GATES = ("ela", "polarized", "ulsam", "gaussian")


class Gated(FeatureMixer):
    """What a feature mixer gives, times a gate that the hidden state makes.

    Args:
        site: Where the mixer stands.
        part: The feature mixer; ``NoMixing`` if not given.
        gate: ``ela``: one for each place along every axis and channel, from the mean of its strip and its neighbours;
            ``polarized``: one for each channel, from a weighted mean over tokens, and one for each token; ``ulsam``:
            one for each token and group of channels; ``gaussian``: one for each token and channel, from how likely its
            value is under learned Gaussians of each group of channels, among all tokens.
        reach: Neighbours of ``ela``'s strips, odd.
        groups: Of the channels of ``ulsam`` and ``gaussian``; must divide C.
        gaussians: Of each group.

    Raises:
        ValueError: An option is unknown or out of range, or the part is no feature mixer.
    """

    def __init__(
        self,
        site: Site,
        *,
        part: Callable[[Site], TokenMixer] | None = None,
        gate: Literal["ela", "polarized", "ulsam", "gaussian"] = "ela",
        reach: int = 7,
        groups: int = 4,
        gaussians: int = 2,
    ) -> None:
        super().__init__(site)
        self.mixer: Any = made_part(NoMixing if part is None else part, site, "part of Gated")
        if not isinstance(self.mixer, FeatureMixer):
            raise ValueError(f"part of Gated is {type(self.mixer).__name__}: name a feature mixer, or use Adapted")
        self.part: Any = plain_part(self.mixer)
        if gate not in _GATES:
            raise ValueError(f"gate of Gated is {gate!r}: give one of {', '.join(_GATES)}")
        if reach < 1 or reach % 2 == 0:
            raise ValueError(f"reach of Gated is {reach!r}: give an odd number of tokens")
        channels = site.channels
        if gate in ("ulsam", "gaussian") and (groups < 1 or channels % groups):
            raise ValueError(f"groups of Gated is {groups!r}, and {site.path} has {channels} channels")
        if gaussians < 1:
            raise ValueError(f"gaussians of Gated is {gaussians!r}: give 1 or more")
        self.gate, self.reach, self.groups, self.gaussians = gate, reach, groups, gaussians
        half = max(1, channels // 2)
        made: dict[str, dict[str, nn.Module]] = {
            "ela": {"strip": nn.Conv1d(channels, channels, reach, padding=reach // 2, groups=channels)},
            "polarized": {
                "channel_query": nn.Linear(channels, 1),
                "channel_value": nn.Linear(channels, half),
                "channel_out": nn.Linear(half, channels),
                "token_query": nn.Linear(channels, half),
                "token_value": nn.Linear(channels, half),
            },
            "ulsam": {"place": nn.Conv1d(channels, groups, 1, groups=groups)},
            "gaussian": {},
        }
        self.layers = nn.ModuleDict(made[gate])
        if gate in ("polarized", "gaussian"):
            self.share = nn.Parameter(torch.zeros(1))
        if gate == "gaussian":
            self.offset = nn.Parameter(torch.zeros(groups, gaussians))
            self.log_width = nn.Parameter(torch.linspace(0, 1, gaussians).repeat(groups, 1))
        last = {"ela": "strip", "polarized": "channel_out", "ulsam": "place"}
        for parameter in self.layers[last[gate]].parameters() if gate in last else ():
            nn.init.zeros_(parameter)

    @property
    def served_axes(self) -> Collection[int]:  # type: ignore[override]
        """Those of the part."""
        axes: Collection[int] = self.mixer.served_axes
        return axes

    def flops(self, grid: Grid) -> int:
        """Those of the part and of the gate's layers."""
        tokens, channels = grid.tokens, self.site.channels
        half = max(1, channels // 2)
        own = {
            "ela": 2 * sum(grid.sizes) * channels * self.reach,
            "polarized": 2 * tokens * channels * (1 + 3 * half) + 2 * tokens * half * 2 + 2 * half * channels,
            "ulsam": 2 * tokens * channels,
            "gaussian": 0,
        }
        return int(self.mixer.flops(grid)) + own[self.gate]

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C)."""
        gates = {
            "ela": self._strips,
            "polarized": self._polarized,
            "ulsam": self._places,
            "gaussian": self._likely,
        }
        mixed: Tensor = self.mixer(hidden_BNC, grid) * gates[self.gate](hidden_BNC, grid)
        return mixed

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Let the part start."""
        self.mixer.init_from_teacher(weights, samples)

    def _strips(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Twice the sigmoid of each axis' strips, multiplied."""
        axes, gate = len(grid.sizes), torch.ones_like(hidden_BNC[:1, :1]).view(1, *(1 for _ in grid.sizes), -1)
        image = hidden_BNC.unflatten(1, grid.sizes)
        for axis, size in enumerate(grid.sizes):
            others = [1 + each for each in range(axes) if each != axis]
            strip_BCL = (image.mean(others) if others else image).transpose(1, 2)
            own = 2 * torch.sigmoid(self.layers["strip"](strip_BCL)).transpose(1, 2)
            gate = gate * own.view(len(hidden_BNC), *(size if each == axis else 1 for each in range(axes)), -1)
        return gate.expand(image.shape).flatten(1, -2)

    def _polarized(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Twice the sigmoid of a gate for channels, and by a learned share that of one for tokens."""
        layer = self.layers
        weights_B1N = layer["channel_query"](hidden_BNC).softmax(1).mT
        channels_B1C = layer["channel_out"](weights_B1N @ layer["channel_value"](hidden_BNC))
        channels_B1C = 2 * torch.sigmoid(F.layer_norm(channels_B1C, channels_B1C.shape[-1:]))
        query_B1H = layer["token_query"](hidden_BNC).mean(1, keepdim=True).softmax(-1)
        tokens_BN1 = 2 * torch.sigmoid(layer["token_value"](hidden_BNC) @ query_B1H.mT)
        return channels_B1C + self.share * (tokens_BN1 - 1)

    def _places(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """N times the softmax over tokens of each group."""
        place_BgN = self.layers["place"](hidden_BNC.transpose(1, 2))
        for_tokens = place_BgN.softmax(-1).mT * hidden_BNC.shape[1]
        return for_tokens.repeat_interleave(self.site.channels // self.groups, -1)

    def _likely(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """By a learned share N times the softmax over tokens of the log of all densities, in each channel."""
        hidden = hidden_BNC.float()
        variance, mean = torch.var_mean(hidden, 1, keepdim=True, correction=0)
        channels = self.site.channels // self.groups
        places_BNCK = ((hidden - mean) / (variance + 1e-5).sqrt())[..., None]
        offset, log_width = (each.float().repeat_interleave(channels, 0) for each in (self.offset, self.log_width))
        logs_BNC = -0.5 * ((places_BNCK - offset) / log_width.exp()).square().sum(-1)
        likely = logs_BNC.softmax(1) * hidden.shape[1]
        return (1 + self.share.float() * (likely - 1)).to(hidden_BNC.dtype)
