"""The interface of feature extractors: uint8 images in, float32 features out, frozen, with a stable identity."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sparsight.common.hashes import SHA256, state_hash


class FeatureExtractor(nn.Module, ABC):
    """A frozen network that describes images; a subclass builds it, hands it over and says how features are made.

    Args:
        network: The network, with its weights.
        name: Short name, part of the names under which metrics are logged.
        preprocessing: What happens to images before the network, in words; part of the identity.
    """

    def __init__(self, network: nn.Module, *, name: str, preprocessing: str) -> None:
        super().__init__()
        self.network: Any = network.requires_grad_(False)
        self.name = name
        self.preprocessing = preprocessing
        self.eval()

    @abstractmethod
    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, F) of uint8 RGB images of any size."""

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Extractors stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, F), float32, of uint8 images; grey ones are repeated to three channels.

        Raises:
            ValueError: The images are not uint8.
        """
        if images_BCHW.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, got {images_BCHW.dtype}: convert with to_uint8")
        rgb_BCHW = images_BCHW.expand(-1, 3, -1, -1) if images_BCHW.shape[1] == 1 else images_BCHW
        with torch.autocast(rgb_BCHW.device.type, enabled=False):
            return self.extract(rgb_BCHW).float()

    @cached_property
    def num_features(self) -> int:
        """Number of features F, found by asking the network about one image."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        return self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)).shape[1]

    @cached_property
    def identity(self) -> str:
        """Hash of weights and preprocessing: equal for extractors that give equal features."""
        text = f"{type(self).__name__}\n{self.preprocessing}\n{state_hash(self.state_dict(), like=SHA256)}"
        return hashlib.sha256(text.encode()).hexdigest()
