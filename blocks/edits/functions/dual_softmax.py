"""LACING's multimodal dual attention (Zhao et al., arXiv 2411.14279).

Shape legend: B batch, Q queries, K keys, h heads, d channels of a head.
"""

from __future__ import annotations

from torch import Tensor

from blocks.edits.base import AttentionFunction, Kernel
from blocks.tokens.attending import Attending


class DualSoftmax(AttentionFunction):
    """Adds attention on images to attention on text, each with a softmax of its own (LACING).

    So a row that sees an image has weights that sum to 2. Of images an image token sees itself alone. A model must be
    trained with it. Two calls of the fast kernel, and no weights are ever held.

    Args:
        whole_images: Let image tokens see all images that come before them.
    """

    def __init__(self, whole_images: bool = False) -> None:
        self.whole_images = whole_images

    def attend(self, kernel: Kernel, attending: Attending, value: Tensor, layer: int) -> Tensor:
        """The sum of both."""
        queries, keys = attending.queries, attending.keys
        itself = (queries.place[:, :, None] == keys.place[:, None])[:, None]
        images = attending.allowed & keys.visual[:, None, None]
        if not self.whole_images:
            images = images & (~queries.visual[:, None, :, None] | itself)
        out = value.new_zeros(())
        for part in (images, attending.allowed & ~keys.visual[:, None, None]):
            some = part.any(-1, keepdim=True)  # rows that see nothing of it get nothing
            found = kernel(attending._replace(allowed=part | (~some & itself)), value)
            out = out + found * some.any(1)[:, :, None]
        return out
