"""A distillation into two core mixers with trained projections; ``fixtures/before_core_sites`` holds it as it was."""

from __future__ import annotations

from functools import partial

import torch

from blocks import NeighborhoodAttention
from lightning_modules import AttentionDistillation
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.train.stages import Stage
from tests.tiny_mixers import Blend


def distillation(teacher: str) -> AttentionDistillation:
    torch.manual_seed(0)
    return AttentionDistillation(
        teacher,
        stages=[Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, warmup_steps=1)],
        plan=[
            PlanEntry("transformer_blocks.0.attn1", partial(NeighborhoodAttention, kernel_size=3)),
            PlanEntry("transformer_blocks.1.attn1", Blend),
        ],
        trained={"projections": True, "init_samples": 0},
        sampling=Sampling(2),
    )
