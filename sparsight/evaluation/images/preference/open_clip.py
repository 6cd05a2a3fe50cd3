"""Weights in open_clip's names as transformers' CLIP has them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_WHOLE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' own spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def as_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an open_clip vision transformer and its text tower, by their names in transformers' ``CLIPModel``.

    Raises:
        ValueError: A name is none of open_clip's.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in _WHOLE:
            renamed[_WHOLE[name]] = tensor
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = tensor.T
        elif name != "attn_mask":  # a constant
            renamed |= _of_layer(name, tensor)
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _of_layer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    for tower, new in _TOWERS.items():
        if not name.startswith(tower):
            continue
        number, _, part = name.removeprefix(tower).partition(".")
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            parts = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{new}{number}.self_attn.{each}_proj.{kind}": rows for each, rows in parts}
        module, _, kind = part.rpartition(".")
        if module in _LAYER:
            return {f"{new}{number}.{_LAYER[module]}.{kind}": tensor}
    raise ValueError(f"{name} is no weight of an open_clip model with two transformers")


def check_fits(weights: Mapping[str, Tensor], network: torch.nn.Module, *, source: str) -> None:
    """Refuse weights of another network.

    Raises:
        ValueError: One is missing, too many or of another shape; the message names it.
    """
    wanted = network.state_dict()
    for name in (*wanted.keys() - weights.keys(), *weights.keys() - wanted.keys()):
        raise ValueError(f"{source} and the network do not fit: only one of them has {name}")
    for name, tensor in wanted.items():
        if tensor.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)} there, {tuple(tensor.shape)} in the network"
            raise ValueError(f"{source} and the network do not fit: {name} is {shapes}")
