"""A decoder layer at work as a layer of an encoder.

Shape legend: N tokens, C channels, h heads, g heads of keys, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparsight.lvlm.methods.conflicts import layer_parts
from sparsight.lvlm.model.tower import Parts

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = {"input_layernorm", "post_attention_layernorm"}


def as_encoder(parts: Parts, layer: int, *, method: str) -> Callable[[Tensor], Tensor]:
    """A function of tokens (N, C): the layer without positions, in which everyone sees everyone.

    Args:
        parts: Of the model.
        layer: Which; from the end below 0.
        method: Who asks.

    Raises:
        ValueError: There is no such layer, or it is more than two norms, four projections and a feed-forward part.
    """
    depth = len(parts.layers)
    if not -depth <= layer < depth:
        raise ValueError(f"{method} takes layer {layer} for an encoder's; there are 0 to {depth - 1}")
    module = parts.layers[layer]
    inside = dict(module.named_children())
    attention = inside.get("self_attn")
    held: dict[str, Any] = {} if attention is None else dict(attention.named_children())
    plain = {name for name, child in held.items() if any(True for _ in child.parameters())} == set(PROJECTIONS)
    if not plain or {name for name in inside if "norm" in name} != NORMS:
        raise ValueError(
            f"{method} needs attention of four projections between two norms in layer {layer}; {type(module).__name__} "
            f"holds {', '.join([*inside, *held])}"
        )
    config: Any = parts.decoder.config
    heads, own = config.num_attention_heads, layer_parts(module)

    def encode(tokens_NC: Tensor) -> Tensor:
        normed_NC = own.first_norm(tokens_NC)
        query, key, value = (
            held[name](normed_NC).unflatten(1, (-1, held["q_proj"].out_features // heads)).transpose(0, 1)
            for name in PROJECTIONS[:3]
        )
        shared = len(query) // len(key)
        key, value = (part.repeat_interleave(shared, 0) for part in (key, value))
        seen_hNd = F.scaled_dot_product_attention(query, key, value)
        middle_NC = tokens_NC + held["o_proj"](seen_hNd.transpose(0, 1).flatten(1))
        return middle_NC + _unedited(own.feed_forward)(own.second_norm(middle_NC))

    return encode


def _unedited(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module as its class computes it, without what a recipe has put around it."""
    return lambda hidden: type(module).forward(module, hidden)
