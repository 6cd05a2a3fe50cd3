"""LLaVA-HR's mixture-of-resolution adapters: a convolutional tower reads the image sharply (arXiv 2403.03003).

Shape legend: N patches, R, S rows and columns of them, C channels of the tower, D of the slow one, H, W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.tokens.tower import TowerEdit, TowerSight
from blocks.tokens.weighted import Shape, Weighted

STRIDE = 32  # of the slow tower


class TwoResolutions(Weighted, TowerEdit):
    """A second tower of convolutions (ConvNeXt's blocks) reads the image in its highest resolution, for the first one.

    Behind each of the first three quarters of the vision tower, F + p(gelu(dwconv7(F))) and then, with S of the slow
    tower and S' = q(gelu(r(S))), F + tanh(g([mean F; mean S'])) S'; p, q and r are convolutions of 1 x 1, of which p
    and q begin at zero, and g two linear layers. What leaves is a(F) + b(S).

    Where an image has tiles, the slow tower reads these put together, and otherwise the pixels that the tower reads. It
    is given pixels enough for one of its tokens at each patch, in place of pooling S afterwards. a begins as a copy and
    b at zero, so that the model begins as it was; the slow tower begins untrained, unless ``trained`` holds weights.
    The paper's model has no tiles beside.

    Args:
        widths: Channels of the slow tower's four stages.
        depths: Blocks of each.
        trained: File of trained weights, or a folder with it.
    """

    cuts = 3

    def __init__(
        self, widths: list[int] | None = None, depths: list[int] | None = None, trained: str | None = None
    ) -> None:
        self.widths = [96, 192, 384, 768] if widths is None else widths
        self.depths = [3, 3, 9, 3] if depths is None else depths
        for name, given in (("widths", self.widths), ("depths", self.depths)):
            if len(given) != 4 or min(given) < 1:
                raise ValueError(f"{name} are four numbers from 1, one for each stage; got {given}")
        self.trained = trained

    def make(self, shape: Shape) -> nn.Module:
        """The slow tower and what joins it."""
        held = nn.ModuleDict({"slow": _slow(self.widths, self.depths)})
        held["joints"] = nn.ModuleList(_Joint(shape.vision, self.widths[-1]) for _ in range(self.cuts))
        held["fast_out"], held["slow_out"] = (nn.Linear(c, shape.vision) for c in (shape.vision, self.widths[-1]))
        nn.init.eye_(held["fast_out"].weight)  # type: ignore[arg-type]
        for name in ("fast_out", "slow_out"):
            nn.init.zeros_(held[name].bias)  # type: ignore[arg-type]
        nn.init.zeros_(held["slow_out"].weight)  # type: ignore[arg-type]
        return held

    def look(self, sight: TowerSight) -> Tensor:
        """S (D, R, S)."""
        size = [side * STRIDE for side in sight.grid]
        sharp = F.interpolate(sight.sharp[None].float(), size, mode="bilinear", align_corners=False)
        found: Tensor = self.held["slow"](sharp)[0]
        return found

    def between(self, cut: int, states: Tensor, sight: TowerSight, seen: Tensor) -> Tensor:
        """Joined behind a quarter."""
        found: Tensor = self.held["joints"][cut](states.float(), seen, sight.grid)
        return found.to(states)

    def leave(self, states: Tensor, sight: TowerSight, seen: Tensor) -> Tensor:
        """Both towers' together."""
        held: Any = self.held
        found: Tensor = held["fast_out"](states.float()) + held["slow_out"](seen.flatten(1).T)
        return found.to(states)


class _Joint(nn.Module):
    def __init__(self, fast: int, slow: int) -> None:
        super().__init__()
        self.fast_conv = nn.Conv2d(fast, fast, 7, padding=3, groups=fast)
        self.fast_proj, self.slow_conv = nn.Conv2d(fast, fast, 1), nn.Conv2d(slow, slow, 1)
        self.slow_proj = nn.Conv2d(slow, fast, 1)
        self.gate = nn.Sequential(nn.Linear(2 * fast, max(fast // 2, 1)), nn.GELU(), nn.Linear(max(fast // 2, 1), 1))
        for conv in (self.fast_conv, self.slow_conv):
            nn.init.xavier_uniform_(conv.weight)
        for conv in (self.fast_proj, self.slow_proj):
            nn.init.zeros_(conv.weight)
        for conv in (self.fast_conv, self.slow_conv, self.fast_proj, self.slow_proj):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, states_NC: Tensor, slow_DRS: Tensor, grid: tuple[int, int]) -> Tensor:
        fast_CRS = states_NC.T.unflatten(1, grid)[None]
        fast_CRS = fast_CRS + self.fast_proj(F.gelu(self.fast_conv(fast_CRS)))
        fast_NC = fast_CRS[0].flatten(1).T
        slow_NC = self.slow_proj(F.gelu(self.slow_conv(slow_DRS[None])))[0].flatten(1).T
        gate = self.gate(torch.cat([fast_NC.mean(0), slow_NC.mean(0)]))
        return fast_NC + gate.tanh() * slow_NC


class _Norm(nn.LayerNorm):
    """Over the channels of a map."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class _Block(nn.Module):
    """ConvNeXt's: a convolution of each channel by itself, then a feed-forward part at each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            _Norm(width, eps=1e-6),
            nn.Conv2d(width, 4 * width, 1),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1),
        )
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = pixels + self.scale * self.inside(pixels)
        return found


def _slow(widths: list[int], depths: list[int]) -> nn.Sequential:
    """Four stages: every place of the last stands for 32 x 32 pixels."""
    parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), _Norm(widths[0], eps=1e-6)]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            parts += [_Norm(widths[stage - 1], eps=1e-6), nn.Conv2d(widths[stage - 1], width, 2, 2)]
        parts += [_Block(width) for _ in range(depth)]
    return nn.Sequential(*parts)
