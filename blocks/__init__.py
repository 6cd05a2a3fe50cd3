"""Token mixers, which can stand in for a self-attention, and methods of recipes for image-text models. One file each.

`blocks.base` says what a mixer must do, `blocks.tokens.base` and `blocks.edits.base` what a method may.
"""

from __future__ import annotations

from blocks.adapted import Adapted
from blocks.agent_attention import AgentAttention
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
from blocks.cluster_attention import ClusterAttention
from blocks.delta_conv import DeltaConvBlock
from blocks.disc_attention import DiscAttention
from blocks.edits import (
    AttentionEdit,
    HeadAblation,
    HeadEdit,
    MaskProgram,
    ModalityMutualAttention,
    VisualAttentionRedistribution,
)
from blocks.estimated_attention import EstimatedAttention
from blocks.factorized_attention import FactorizedAttention
from blocks.frequency_filter import FrequencyFilter
from blocks.gated import Gated
from blocks.head_split import HeadSplit
from blocks.kernel_attention import KernelAttention
from blocks.large_kernel import LargeKernelAttention
from blocks.linear_attention import LinearAttention
from blocks.local_attention import LocalAttention
from blocks.local_scan import LocalScan
from blocks.merge import Merge
from blocks.neighborhood_attention import NeighborhoodAttention
from blocks.no_mixing import NoMixing
from blocks.pooled_attention import PooledAttention
from blocks.radial_attention import RadialAttention
from blocks.routed_attention import RoutedAttention
from blocks.softmax_attention import SoftmaxAttention
from blocks.tile_attention import TileAttention
from blocks.token_merging import TokenMerging
from blocks.tokens import (
    DivPrune,
    FasterVLM,
    FastV,
    FeatureReducer,
    LayerPolicy,
    PyramidDrop,
    RandomTokens,
    UniformTokens,
    VisionZip,
    VisPruner,
)
from blocks.varied_window_attention import VariedWindowAttention
from blocks.window_attention import WindowAttention

__all__ = [
    "Adapted",
    "AgentAttention",
    "AttentionEdit",
    "AttentionWeights",
    "ClusterAttention",
    "CoreMixer",
    "DeltaConvBlock",
    "DiscAttention",
    "DivPrune",
    "EstimatedAttention",
    "FactorizedAttention",
    "FastV",
    "FasterVLM",
    "FeatureMixer",
    "FeatureReducer",
    "FrequencyFilter",
    "Gated",
    "Grid",
    "HeadAblation",
    "HeadEdit",
    "HeadSplit",
    "KernelAttention",
    "LargeKernelAttention",
    "LayerPolicy",
    "LinearAttention",
    "LocalAttention",
    "LocalScan",
    "MaskProgram",
    "Merge",
    "ModalityMutualAttention",
    "NeighborhoodAttention",
    "NoMixing",
    "PooledAttention",
    "PyramidDrop",
    "RadialAttention",
    "RandomTokens",
    "RoutedAttention",
    "Site",
    "SiteSamples",
    "SoftmaxAttention",
    "SoftmaxMixer",
    "TileAttention",
    "TokenMerging",
    "TokenMixer",
    "UniformTokens",
    "VariedWindowAttention",
    "VisPruner",
    "VisionZip",
    "VisualAttentionRedistribution",
    "WindowAttention",
]
