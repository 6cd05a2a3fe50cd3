"""ImageReward's network, put together from transformers' BLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sparsight.evaluation.images.preference.open_clip import check_fits

_HEAD = 64  # width of an attention head in BERT and in vision transformers of every size
_NAMES = (  # names of the published checkpoint, and what they are in transformers
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)


class RewardNetwork(nn.Module):
    """A vision transformer, BERT with attention to its tokens, and five linear layers on the first text token.

    Args:
        weights: The published checkpoint's, by its names; sizes are read from their shapes.

    Raises:
        ValueError: They are of another network.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, source: str) -> None:
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        found = renamed(weights)
        try:
            vision, text = _vision_config(found), _text_config(found)
            widths = [found["head.0.weight"].shape[1], *(found[f"head.{n}.weight"].shape[0] for n in (0, 2, 4, 6, 7))]
        except KeyError as error:
            raise ValueError(f"{source} is no checkpoint of ImageReward: it has no {error}") from error
        self.image_size: int = vision.image_size
        with torch.random.fork_rng(devices=[]):
            self.vision: Any = BlipVisionModel(vision)
            self.text: Any = BlipTextModel(text, add_pooling_layer=False)
            layers: list[nn.Module] = [nn.Linear(*pair) for pair in pairwise(widths)]
        for place in (1, 3, 5):  # dropout, while it was trained; there is nothing else between the layers
            layers.insert(place, nn.Identity())
        self.head = nn.Sequential(*layers)
        check_fits(found, self, source=source)
        self.load_state_dict(found)

    def forward(self, pixels_BCHW: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """Rewards (B,) before they are shifted and scaled."""
        seen_BNC = self.vision(pixels_BCHW).last_hidden_state
        read_BTC = self.text(
            tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen_BNC
        ).last_hidden_state
        return self.head(read_BTC[:, 0])[:, 0]


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the parts that are used, by their names in ``RewardNetwork``; others are left out."""
    kept = {}
    for name, tensor in weights.items():
        for pattern, new in _NAMES:
            if re.match(pattern, name) and not name.endswith("position_ids"):
                kept[re.sub(pattern, new, name)] = tensor
    return kept


def _vision_config(weights: Mapping[str, Tensor]) -> Any:
    from transformers import BlipVisionConfig

    patches = weights["vision.embeddings.position_embedding"].shape[1] - 1
    width, _, patch, _ = weights["vision.embeddings.patch_embedding.weight"].shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(weights, "vision.encoder.layers"),
        num_attention_heads=width // _HEAD,
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(weights: Mapping[str, Tensor]) -> Any:
    from transformers import BlipTextConfig

    vocabulary, width = weights["text.embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=weights["vision.embeddings.patch_embedding.weight"].shape[0],
        intermediate_size=weights["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_layers(weights, "text.encoder.layer"),
        num_attention_heads=width // _HEAD,
        max_position_embeddings=weights["text.embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
    )


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in weights if name.startswith(prefix))
