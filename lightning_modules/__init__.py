"""LightningModules: what is trained, with which losses."""

from lightning_modules.attention_distillation import AttentionDistillation
from lightning_modules.denoiser_training import DenoiserTraining
from lightning_modules.lvlm_evaluation import LVLMEvaluation
from lightning_modules.sparse_layer_tuning import SparseLayerTuning

__all__ = ["AttentionDistillation", "DenoiserTraining", "LVLMEvaluation", "SparseLayerTuning"]
