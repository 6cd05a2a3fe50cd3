"""LightningModules: what is trained, with which losses."""

from lightning_modules.attention_distillation import AttentionDistillation
from lightning_modules.denoiser_training import DenoiserTraining

__all__ = ["AttentionDistillation", "DenoiserTraining"]
