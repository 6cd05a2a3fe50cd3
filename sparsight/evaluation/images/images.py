"""Images as metrics want them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsight.common.finite import check_finite


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8: clamped and rounded, where torchmetrics' own conversion wraps around and truncates.

    Args:
        images: Floating point (B, C, H, W).

    Raises:
        ValueError: ``images`` is no batch of floating-point images.
        NonFiniteError: A value is NaN or infinite, which would become some grey or other.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"expected floating-point images (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
    check_finite({"pixels": images}, "images")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def resized(images: Tensor, size: int) -> Tensor:
    """Floating-point images (B, C, H, W) as squares of ``size`` pixels: bicubic and antialiased, as Pillow resizes."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
