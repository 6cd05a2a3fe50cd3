"""Methods that change a layer's mask, attention weights or heads."""

from __future__ import annotations

from blocks.edits.base import AttentionEdit, HeadEdit, MaskProgram
from blocks.edits.heads.head_ablation import HeadAblation
from blocks.edits.masks.mutual_attention import ModalityMutualAttention
from blocks.edits.weights.visual_redistribution import VisualAttentionRedistribution

__all__ = [
    "AttentionEdit",
    "HeadAblation",
    "HeadEdit",
    "MaskProgram",
    "ModalityMutualAttention",
    "VisualAttentionRedistribution",
]
