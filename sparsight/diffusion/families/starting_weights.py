"""Starting weights of denoisers made from scratch; diffusers leaves PyTorch's defaults, meant for loading over them."""

from __future__ import annotations

from typing import Any

from torch import nn


def spread(denoiser: Any) -> None:
    """Xavier's uniform numbers in linear layers and the embedding of patches, small ones in other embeddings."""
    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    patches = denoiser.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(patches.out_channels, -1))
    nn.init.zeros_(patches.bias)


def close(*layers: Any) -> None:
    """Let layers return zero."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
