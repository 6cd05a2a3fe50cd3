"""Methods that give an image fewer tokens: before the decoder (reducers) or from a layer on (policies)."""

from __future__ import annotations

from blocks.tokens.base import Crop, Edit, FeatureReducer, LayerPolicy, Reduction
from blocks.tokens.policies.fast_v import FastV
from blocks.tokens.policies.pyramid_drop import PyramidDrop
from blocks.tokens.reducers.controls import RandomTokens, UniformTokens
from blocks.tokens.reducers.div_prune import DivPrune
from blocks.tokens.reducers.faster_vlm import FasterVLM
from blocks.tokens.reducers.vis_pruner import VisPruner
from blocks.tokens.reducers.vision_zip import VisionZip
from blocks.tokens.token_map import TokenMap

__all__ = [
    "Crop",
    "DivPrune",
    "Edit",
    "FastV",
    "FasterVLM",
    "FeatureReducer",
    "LayerPolicy",
    "PyramidDrop",
    "RandomTokens",
    "Reduction",
    "TokenMap",
    "UniformTokens",
    "VisPruner",
    "VisionZip",
]
