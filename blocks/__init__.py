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
    AdversarialAttention,
    AShape,
    AttentionEdit,
    AttentionFunction,
    AttentionSkip,
    BlockSparse,
    BranchDecoder,
    ComparedHeadEdit,
    CompositeAttention,
    CoreContext,
    CorrelationMask,
    CrocAttention,
    DualSoftmax,
    ElasticSpans,
    FeedForwardCut,
    FeedForwardEdit,
    FrameBlockAttention,
    FramePositions,
    GatedBlocks,
    HeadAblation,
    HeadEdit,
    HierarchicalPruning,
    ImageGuidance,
    InactiveHeads,
    Knockout,
    LoFiT,
    LogitEdit,
    MaskProgram,
    ModalityMutualAttention,
    NeighbourWindow,
    OutlierContrast,
    RelevantImage,
    ShiftedGroups,
    SinkCalibration,
    SinkGroups,
    SoftplusAttention,
    SoftPromptGuidance,
    StridedBlocks,
    TemperatureScale,
    VerticalSlash,
    VisionAwareHeads,
    VisualAttentionRedistribution,
    VisualBoost,
    VisualExit,
)
from blocks.estimated_attention import EstimatedAttention
from blocks.factorized_attention import FactorizedAttention
from blocks.focal_attention import FocalAttention
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
from blocks.positional_attention import PositionalAttention
from blocks.radial_attention import RadialAttention
from blocks.regularized import Regularized
from blocks.reweighted_attention import ReweightedAttention
from blocks.routed_attention import RoutedAttention
from blocks.softmax_attention import SoftmaxAttention
from blocks.tile_attention import TileAttention
from blocks.token_merging import TokenMerging
from blocks.tokens import (
    ClusterMerge,
    DivPrune,
    DualPerspective,
    DynamicExit,
    FasterVLM,
    FastV,
    Feather,
    FeatureReducer,
    FitPrune,
    FoPru,
    FrameBudgets,
    FrozenBlock,
    GammaMoD,
    GemFilter,
    LayerEnsemble,
    LayerPolicy,
    PyramidDrop,
    QueryCompressor,
    RandomTokens,
    SparseVLM,
    TextRouter,
    TowerEdit,
    TwoResolutions,
    UniformTokens,
    VisionZip,
    VisPruner,
    WithoutImages,
)
from blocks.varied_window_attention import VariedWindowAttention
from blocks.window_attention import WindowAttention

__all__ = [
    "AShape",
    "Adapted",
    "AdversarialAttention",
    "AgentAttention",
    "AttentionEdit",
    "AttentionFunction",
    "AttentionSkip",
    "AttentionWeights",
    "BlockSparse",
    "BranchDecoder",
    "ClusterAttention",
    "ClusterMerge",
    "ComparedHeadEdit",
    "CompositeAttention",
    "CoreContext",
    "CoreMixer",
    "CorrelationMask",
    "CrocAttention",
    "DeltaConvBlock",
    "DiscAttention",
    "DivPrune",
    "DualPerspective",
    "DualSoftmax",
    "DynamicExit",
    "ElasticSpans",
    "EstimatedAttention",
    "FactorizedAttention",
    "FastV",
    "FasterVLM",
    "Feather",
    "FeatureMixer",
    "FeatureReducer",
    "FeedForwardCut",
    "FeedForwardEdit",
    "FitPrune",
    "FoPru",
    "FocalAttention",
    "FrameBlockAttention",
    "FrameBudgets",
    "FramePositions",
    "FrequencyFilter",
    "FrozenBlock",
    "GammaMoD",
    "Gated",
    "GatedBlocks",
    "GemFilter",
    "Grid",
    "HeadAblation",
    "HeadEdit",
    "HeadSplit",
    "HierarchicalPruning",
    "ImageGuidance",
    "InactiveHeads",
    "KernelAttention",
    "Knockout",
    "LargeKernelAttention",
    "LayerEnsemble",
    "LayerPolicy",
    "LinearAttention",
    "LoFiT",
    "LocalAttention",
    "LocalScan",
    "LogitEdit",
    "MaskProgram",
    "Merge",
    "ModalityMutualAttention",
    "NeighborhoodAttention",
    "NeighbourWindow",
    "NoMixing",
    "OutlierContrast",
    "PooledAttention",
    "PositionalAttention",
    "PyramidDrop",
    "QueryCompressor",
    "RadialAttention",
    "RandomTokens",
    "Regularized",
    "RelevantImage",
    "ReweightedAttention",
    "RoutedAttention",
    "ShiftedGroups",
    "SinkCalibration",
    "SinkGroups",
    "Site",
    "SiteSamples",
    "SoftPromptGuidance",
    "SoftmaxAttention",
    "SoftmaxMixer",
    "SoftplusAttention",
    "SparseVLM",
    "StridedBlocks",
    "TemperatureScale",
    "TextRouter",
    "TileAttention",
    "TokenMerging",
    "TokenMixer",
    "TowerEdit",
    "TwoResolutions",
    "UniformTokens",
    "VariedWindowAttention",
    "VerticalSlash",
    "VisPruner",
    "VisionAwareHeads",
    "VisionZip",
    "VisualAttentionRedistribution",
    "VisualBoost",
    "VisualExit",
    "WindowAttention",
    "WithoutImages",
]
