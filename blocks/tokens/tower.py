"""What a method may do inside the vision tower, and to what leaves it.

Shape legend: N patches of a crop, R, S rows and columns of them, C channels, H, W pixels, V views.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from blocks.tokens.base import Edit


class TowerSight(NamedTuple):
    """What a method sees of an image.

    Args:
        pixels: As the tower reads it (3, H, W).
        sharp: In the highest resolution there is (3, H', W'): its tiles put together without what pads them, or
            ``pixels`` where it has none.
        grid: R and S.
        encode: What leaves the tower (V, N, C) for views (V, 3, H, W), without what methods do there.
    """

    pixels: Tensor
    sharp: Tensor
    grid: tuple[int, int]
    encode: Callable[[Tensor], Tensor]


class TowerEdit(Edit):
    """Changes images while the vision tower reads them: the whole image where it has tiles, which stay as they are.

    Attributes:
        cuts: Between how many equal parts of the tower it works.
    """

    cuts = 0

    def look(self, sight: TowerSight) -> Any:
        """What is made of an image before the tower reads it, and handed on."""
        return None

    def between(self, cut: int, states: Tensor, sight: TowerSight, seen: Any) -> Tensor:
        """New states of patches (N, C) behind the part of the tower with number ``cut``, from 0."""
        return states

    @abstractmethod
    def leave(self, states: Tensor, sight: TowerSight, seen: Any) -> Tensor:
        """New states of patches (N, C) as they leave the tower for the projector."""
