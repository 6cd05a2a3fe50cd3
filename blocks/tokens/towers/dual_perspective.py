"""INF-LLaVA's dual-perspective crops: pieces of an image and coarse images of all of it (arXiv 2407.16198).

Shape legend: n crops on a side, V = n n views, N patches, R, S rows and columns of them, C channels, H, W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.tokens.tower import TowerEdit, TowerSight
from blocks.tokens.weighted import Shape, Weighted


class DualPerspective(Weighted, TowerEdit):
    """The tower reads each image as n x n pieces, as n x n coarse images of every n-th pixel, and as a whole.

    Pieces laid side by side make a sharp map of local features, coarse images woven into each other one of global
    features. Inside each piece, global features query local ones; inside each coarse image, local ones query global
    ones, by one attention with a residual and a norm. Both maps pass two linear layers down to half of their channels,
    are put together, added to both, normed, and brought to the grid of one image, whose mean with the whole image's
    features goes on to the projector.

    Pieces are of the image in its highest resolution: of its tiles put together, or of its pixels made larger, as in
    the authors' code. Tokens stay as many as they were; tiles of the model stay beside, which the paper's has not.

    Args:
        side: n; the tower reads 2 n n images more.
        heads: Of the attention, which divide the tower's channels.
        trained: File of trained weights, or a folder with it.
    """

    def __init__(self, side: int = 3, heads: int = 8, trained: str | None = None) -> None:
        if side < 2 or heads < 1:
            raise ValueError(f"side is from 2 and heads from 1; got {side} and {heads}")
        self.side, self.heads, self.trained = side, heads, trained

    def make(self, shape: Shape) -> nn.Module:
        """Attention, norms, and linear layers of both maps."""
        width = shape.vision
        if width % self.heads or width < 2:
            raise ValueError(f"heads {self.heads} of DualPerspective do not divide the tower's {width} channels")
        held = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value", "out")})
        held["norm"], held["last_norm"] = nn.LayerNorm(width), nn.LayerNorm(width)
        for name in ("local", "global"):
            half = width // 2 if name == "local" else width - width // 2
            held[name] = nn.Sequential(
                nn.Linear(width, max(width // 16, 1)), nn.GELU(), nn.Linear(max(width // 16, 1), half)
            )
        return held

    def leave(self, states: Tensor, sight: TowerSight, seen: Any) -> Tensor:
        """The mean of the whole image's and of both maps'."""
        n, (high, wide) = self.side, sight.pixels.shape[1:]
        size = (n * high, n * wide)
        sharp = F.interpolate(sight.sharp[None].float(), size, mode="bicubic", align_corners=False)[0]
        views = torch.cat([pieces(sharp, n), woven(sharp, n)]).to(sight.pixels)
        features = sight.encode(views).float().transpose(1, 2).unflatten(2, sight.grid)  # (2V, C, R, S)
        local, globe = side_by_side(features[: n * n], n), interwoven(features[n * n :], n)
        asked = [self._attend(pieces(globe, n), pieces(local, n)), self._attend(woven(local, n), woven(globe, n))]
        globe, local = side_by_side(asked[0], n), interwoven(asked[1], n)
        held: Any = self.held
        flat_local, flat_globe = (part.movedim(0, -1) for part in (local, globe))
        half = torch.cat([held["local"](flat_local), held["global"](flat_globe)], -1)
        fused = held["last_norm"](half + flat_local + flat_globe).movedim(-1, 0)
        small = F.interpolate(fused[None], sight.grid, mode="bilinear", align_corners=False)[0]
        return ((states.float() + small.flatten(1).T) / 2).to(states)

    def _attend(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Attention of each view (V, C, R, S) in its counterpart."""
        held: Any = self.held
        ask, other = (part.flatten(2).transpose(1, 2) for part in (asking, asked))

        def heads(name: str, part: Tensor) -> Tensor:
            return held[name](part).unflatten(2, (self.heads, -1)).transpose(1, 2)

        found = F.scaled_dot_product_attention(heads("query", ask), heads("key", other), heads("value", other))
        out: Tensor = held["norm"](held["out"](found.transpose(1, 2).flatten(2)) + ask)
        return out.transpose(1, 2).reshape(asking.shape)


def pieces(image: Tensor, n: int) -> Tensor:
    """Pieces (V, C, H/n, W/n) of an image (C, H, W), row by row."""
    return image.unflatten(2, (n, -1)).unflatten(1, (n, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)


def woven(image: Tensor, n: int) -> Tensor:
    """Images (V, C, H/n, W/n) of every n-th pixel of an image (C, H, W), by the row and column that they begin at."""
    return image.unflatten(2, (-1, n)).unflatten(1, (-1, n)).permute(2, 4, 0, 1, 3).flatten(0, 1)


def side_by_side(parts: Tensor, n: int) -> Tensor:
    """What ``pieces`` was made of."""
    return parts.unflatten(0, (n, n)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def interwoven(parts: Tensor, n: int) -> Tensor:
    """What ``woven`` was made of."""
    return parts.unflatten(0, (n, n)).permute(2, 3, 0, 4, 1).flatten(3).flatten(1, 2)
