"""Methods that give an image fewer tokens: before the decoder (reducers) or from a layer on (policies)."""

from __future__ import annotations

from blocks.tokens.base import Crop, Edit, FeatureReducer, LayerPolicy, Reduction
from blocks.tokens.controls import RandomTokens, UniformTokens
from blocks.tokens.div_prune import DivPrune
from blocks.tokens.fast_v import FastV
from blocks.tokens.faster_vlm import FasterVLM
from blocks.tokens.pyramid_drop import PyramidDrop
from blocks.tokens.token_map import TokenMap
from blocks.tokens.vis_pruner import VisPruner
from blocks.tokens.vision_zip import VisionZip

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
