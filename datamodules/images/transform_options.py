"""Options of what is done to every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from datamodules.images.image_dataset import Fit
from sparsight.common.errors import require


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """How images become those that a model sees, beside their size.

    Args:
        channels: 1 (grey) or 3 (RGB).
        fit: How images of other sizes get there: ``crop`` scales until the image covers the size and cuts the middle
            out; ``pad`` scales down, never up, until it fits in and puts it in the middle of the background;
            ``stretch`` ignores its proportions.
        background: Value, 0 to 255, of padding and behind transparent pixels.
        horizontal_flip: Mirror each training image with probability 1/2.

    Raises:
        ValueError: An option is out of range.
    """

    channels: Literal[1, 3] = 3
    fit: Fit = "crop"
    background: int = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(self.channels in (1, 3), "channels", self.channels, "1 or 3")
        require(self.fit in get_args(Fit), "fit", self.fit, ", ".join(get_args(Fit)))
        require(0 <= self.background <= 255, "background", self.background, "0 to 255")
