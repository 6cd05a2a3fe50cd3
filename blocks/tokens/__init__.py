"""Methods that give an image fewer tokens, before the decoder or from a layer on, or change how the tower reads it."""

from __future__ import annotations

from blocks.tokens.artefact import Artefact
from blocks.tokens.attending import Attending
from blocks.tokens.base import Crop, Decision, Edit, FeatureReducer, LayerPolicy, Reduction, Sight
from blocks.tokens.policies.dyvte import DynamicExit
from blocks.tokens.policies.fast_v import FastV
from blocks.tokens.policies.feather import Feather
from blocks.tokens.policies.fit_prune import FitPrune
from blocks.tokens.policies.gamma_mod import GammaMoD
from blocks.tokens.policies.pyramid_drop import PyramidDrop
from blocks.tokens.policies.sparse_vlm import SparseVLM
from blocks.tokens.reducers.controls import RandomTokens, UniformTokens, WithoutImages
from blocks.tokens.reducers.div_prune import DivPrune
from blocks.tokens.reducers.faster_vlm import FasterVLM
from blocks.tokens.reducers.fo_pru import FoPru
from blocks.tokens.reducers.frame_budgets import FrameBudgets
from blocks.tokens.reducers.frozen_block import FrozenBlock
from blocks.tokens.reducers.gem_filter import GemFilter
from blocks.tokens.reducers.query_compressor import QueryCompressor
from blocks.tokens.reducers.text_router import TextRouter
from blocks.tokens.reducers.vis_pruner import VisPruner
from blocks.tokens.reducers.vision_zip import VisionZip
from blocks.tokens.reducers.vmtc import ClusterMerge
from blocks.tokens.reducers.vtc_cls import LayerEnsemble
from blocks.tokens.token_map import TokenMap
from blocks.tokens.tower import TowerEdit, TowerSight
from blocks.tokens.towers.dual_perspective import DualPerspective
from blocks.tokens.towers.two_resolutions import TwoResolutions
from blocks.tokens.weighted import Shape, Weighted

__all__ = [
    "Artefact",
    "Attending",
    "ClusterMerge",
    "Crop",
    "Decision",
    "DivPrune",
    "DualPerspective",
    "DynamicExit",
    "Edit",
    "FastV",
    "FasterVLM",
    "Feather",
    "FeatureReducer",
    "FitPrune",
    "FoPru",
    "FrameBudgets",
    "FrozenBlock",
    "GammaMoD",
    "GemFilter",
    "LayerEnsemble",
    "LayerPolicy",
    "PyramidDrop",
    "QueryCompressor",
    "RandomTokens",
    "Reduction",
    "Shape",
    "Sight",
    "SparseVLM",
    "TextRouter",
    "TokenMap",
    "TowerEdit",
    "TowerSight",
    "TwoResolutions",
    "UniformTokens",
    "VisPruner",
    "VisionZip",
    "Weighted",
    "WithoutImages",
]
