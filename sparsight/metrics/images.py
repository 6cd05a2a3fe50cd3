"""Images as metrics want them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8: clamped and rounded, where torchmetrics' own conversion wraps around and truncates.

    Args:
        images: Floating point (B, C, H, W).

    Raises:
        ValueError: ``images`` is no batch of floating-point images.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"expected floating-point images (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
