"""Token mixers: what can stand in for a self-attention. One file each; `blocks.base` says what a mixer must do."""

from __future__ import annotations

from blocks.base import (
    AttentionWeights,
    CoreMixer,
    FeatureMixer,
    Grid,
    Site,
    SiteSamples,
    SoftmaxMixer,
    TokenMixer,
)
from blocks.delta_conv import DeltaConvBlock
from blocks.linear_attention import LinearAttention
from blocks.neighborhood_attention import NeighborhoodAttention
from blocks.no_mixing import NoMixing
from blocks.softmax_attention import SoftmaxAttention

__all__ = [
    "AttentionWeights",
    "CoreMixer",
    "DeltaConvBlock",
    "FeatureMixer",
    "Grid",
    "LinearAttention",
    "NeighborhoodAttention",
    "NoMixing",
    "Site",
    "SiteSamples",
    "SoftmaxAttention",
    "SoftmaxMixer",
    "TokenMixer",
]
