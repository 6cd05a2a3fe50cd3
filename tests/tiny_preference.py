"""Checkpoints of preference models by the names that they are published under, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import CLIP_LETTERS

WIDTH = 128  # of ImageReward's two towers: two heads of 64
_NORMS = ("ln_", "norm", "LayerNorm")


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Small random values; scales of norms are about 1."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in weights.items():
        if any(norm in name for norm in _NORMS) and name.endswith("weight"):
            tensor.add_(1)
    return weights


def open_clip_weights() -> dict[str, Tensor]:
    """Of the CLIP that ``tiny_networks.save_clip`` makes: two layers, width 16, patches of 4 of 16 pixels."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (8, 16),
        "text_projection": (16, 8),
        "logit_scale": (),
        "token_embedding.weight": (len(CLIP_LETTERS), 16),
        "ln_final.weight": (16,),
        "ln_final.bias": (16,),
        "visual.class_embedding": (16,),
        "visual.positional_embedding": (17, 16),
        "visual.proj": (16, 8),
        "visual.conv1.weight": (16, 3, 4, 4),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.weight": (16,), f"visual.{norm}.bias": (16,)}
    for tower in ("visual.transformer", "transformer"):
        for layer in range(2):
            block = f"{tower}.resblocks.{layer}"
            shapes |= {f"{block}.attn.in_proj_weight": (48, 16), f"{block}.attn.in_proj_bias": (48,)}
            for name, shape in {
                "ln_1": (16,),
                "ln_2": (16,),
                "attn.out_proj": (16, 16),
                "mlp.c_fc": (32, 16),
                "mlp.c_proj": (16, 32),
            }.items():
                shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return random_weights(shapes)


def reward_weights(vocabulary: int = 59) -> dict[str, Tensor]:
    """Of an ImageReward of two layers a tower, patches of 8 of 16 pixels."""
    w, vision, text = WIDTH, "blip.visual_encoder", "blip.text_encoder"
    linear: dict[str, tuple[int, int]] = {}
    norms = [f"{vision}.norm", f"{text}.embeddings.LayerNorm"]
    for layer in range(2):
        block, bert = f"{vision}.blocks.{layer}", f"{text}.encoder.layer.{layer}"
        linear |= {f"{block}.attn.qkv": (3 * w, w), f"{block}.attn.proj": (w, w)}
        linear |= {f"{block}.mlp.fc1": (64, w), f"{block}.mlp.fc2": (w, 64)}
        norms += [f"{block}.norm1", f"{block}.norm2", f"{bert}.output.LayerNorm"]
        for attention in ("attention", "crossattention"):
            linear |= {f"{bert}.{attention}.self.{name}": (w, w) for name in ("query", "key", "value")}
            linear |= {f"{bert}.{attention}.output.dense": (w, w)}
            norms += [f"{bert}.{attention}.output.LayerNorm"]
        linear |= {f"{bert}.intermediate.dense": (64, w), f"{bert}.output.dense": (w, 64)}
    widths = (w, 32, 16, 8, 4, 1)
    linear |= {f"mlp.layers.{n}": (widths[i + 1], widths[i]) for i, n in enumerate((0, 2, 4, 6, 7))}
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}.cls_token": (1, 1, w),
        f"{vision}.pos_embed": (1, 5, w),
        f"{vision}.patch_embed.proj.weight": (w, 3, 8, 8),
        f"{vision}.patch_embed.proj.bias": (w,),
        f"{text}.embeddings.word_embeddings.weight": (vocabulary, w),
        f"{text}.embeddings.position_embeddings.weight": (40, w),
        "blip.vision_proj.weight": (4, w),  # of the pretraining, not used
    }
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (w,), f"{name}.bias": (w,)}
    return random_weights(shapes)


def save_reward(file: Path) -> Path:
    """ImageReward as safetensors; ``tiny.save_text_encoder`` makes a tokenizer for it."""
    save_file(reward_weights(), file)
    return file
