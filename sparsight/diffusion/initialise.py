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
    closed = [denoiser.proj_out_1, denoiser.proj_out_2]
    for layer in (*closed, *(block.norm1.linear for block in denoiser.transformer_blocks)):
        _close(layer)


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
