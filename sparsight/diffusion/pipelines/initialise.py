"""Starting weights of denoisers made from scratch; diffusers leaves PyTorch's defaults, meant for loading over them."""

from __future__ import annotations

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn


def initialise_dit(denoiser: Any) -> None:
    """adaLN-Zero: every block starts as the identity and the output as zero (Peebles and Xie, arXiv 2212.09748).

    Args:
        denoiser: A DiTTransformer2DModel; changed in place.
    """
    _spread(denoiser)
    for layer in (denoiser.proj_out_1, denoiser.proj_out_2, *(b.norm1.linear for b in denoiser.transformer_blocks)):
        _close(layer)


def initialise_sd3(denoiser: Any) -> None:
    """adaLN-Zero in both streams of a joint transformer (Esser et al., arXiv 2403.03206).

    Args:
        denoiser: An SD3Transformer2DModel; changed in place.
    """
    _spread(denoiser)
    _close(denoiser.proj_out)
    for block in denoiser.transformer_blocks:
        _close(block.norm1.linear)
        _close(block.norm1_context.linear)


def _spread(denoiser: Any) -> None:
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


def initialise_unet(denoiser: Any) -> None:
    """Every residual branch and the output start as zero (Dhariwal and Nichol, arXiv 2105.05233).

    Args:
        denoiser: A UNet2DConditionModel; changed in place.
    """
    _close(denoiser.conv_out)
    for module in denoiser.modules():
        if isinstance(module, ResnetBlock2D):
            _close(module.conv2)
        elif isinstance(module, Transformer2DModel):
            _close(module.proj_out)


def _close(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
