"""Methods that change a layer's mask, attention, heads or feed-forward part, or mix the logits of two passes."""

from __future__ import annotations

from blocks.edits.base import (
    AttentionEdit,
    AttentionFunction,
    BranchDecoder,
    ComparedHeadEdit,
    FeedForwardEdit,
    HeadEdit,
    LayerEdit,
    LogitEdit,
    MaskProgram,
    PositionEdit,
)
from blocks.edits.branches.image_guidance import ImageGuidance
from blocks.edits.branches.outlier_contrast import OutlierContrast
from blocks.edits.branches.relevant_image import RelevantImage
from blocks.edits.branches.soft_prompt import SoftPromptGuidance
from blocks.edits.functions.core_context import CoreContext
from blocks.edits.functions.dual_softmax import DualSoftmax
from blocks.edits.functions.gated_blocks import GatedBlocks
from blocks.edits.functions.hierarchical_pruning import HierarchicalPruning
from blocks.edits.functions.minference import AShape, BlockSparse, VerticalSlash
from blocks.edits.functions.softplus_attention import SoftplusAttention
from blocks.edits.heads.head_ablation import HeadAblation
from blocks.edits.heads.lofit import LoFiT
from blocks.edits.heads.vision_aware_heads import VisionAwareHeads
from blocks.edits.heads.yopo import FeedForwardCut, InactiveHeads, NeighbourWindow, VisualExit
from blocks.edits.layers.attention_skip import AttentionSkip
from blocks.edits.masks.composite_attention import CompositeAttention
from blocks.edits.masks.correlation_mask import CorrelationMask
from blocks.edits.masks.croc import CrocAttention
from blocks.edits.masks.elastic_spans import ElasticSpans
from blocks.edits.masks.frame_blocks import FrameBlockAttention
from blocks.edits.masks.knockout import Knockout
from blocks.edits.masks.mutual_attention import ModalityMutualAttention
from blocks.edits.masks.shifted_groups import ShiftedGroups, SinkGroups
from blocks.edits.masks.strided_blocks import StridedBlocks
from blocks.edits.positions.frame_positions import FramePositions
from blocks.edits.weights.adversarial import AdversarialAttention
from blocks.edits.weights.sink_calibration import SinkCalibration
from blocks.edits.weights.temperature import TemperatureScale
from blocks.edits.weights.visual_boost import VisualBoost
from blocks.edits.weights.visual_redistribution import VisualAttentionRedistribution

__all__ = [
    "AShape",
    "AdversarialAttention",
    "AttentionEdit",
    "AttentionFunction",
    "AttentionSkip",
    "BlockSparse",
    "BranchDecoder",
    "ComparedHeadEdit",
    "CompositeAttention",
    "CoreContext",
    "CorrelationMask",
    "CrocAttention",
    "DualSoftmax",
    "ElasticSpans",
    "FeedForwardCut",
    "FeedForwardEdit",
    "FrameBlockAttention",
    "FramePositions",
    "GatedBlocks",
    "HeadAblation",
    "HeadEdit",
    "HierarchicalPruning",
    "ImageGuidance",
    "InactiveHeads",
    "Knockout",
    "LayerEdit",
    "LoFiT",
    "LogitEdit",
    "MaskProgram",
    "ModalityMutualAttention",
    "NeighbourWindow",
    "OutlierContrast",
    "PositionEdit",
    "RelevantImage",
    "ShiftedGroups",
    "SinkCalibration",
    "SinkGroups",
    "SoftPromptGuidance",
    "SoftplusAttention",
    "StridedBlocks",
    "TemperatureScale",
    "VerticalSlash",
    "VisionAwareHeads",
    "VisualAttentionRedistribution",
    "VisualBoost",
    "VisualExit",
]
