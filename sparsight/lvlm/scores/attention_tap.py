"""Listening to queries and keys inside transformers' attention, while the fast kernel goes on computing the outputs.

transformers calls attention and mask functions by one name. A mask function must exist under the same name: without it
padding is ignored and some kernels turn non-causal, both in silence.

Shape legend: B batch, h heads, g heads of keys, T tokens, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsight.common.errors import ConfigurationError
from sparsight.common.names import named
from sparsight.lvlm.model.tower import Parts

TAPPED = {"sdpa": "sparsight_tapped_sdpa", "eager": "sparsight_tapped_eager"}


@dataclass(frozen=True)
class Attending:
    """What one attention is about to compute.

    Args:
        layer: Index of its decoder layer.
        query_BhTd: Queries, position-encoded.
        key_BgTd: Keys, position-encoded; each serves h / g heads.
        mask: Who may look at whom, (B, 1, T, T): bools, or numbers to add to the logits.
        scaling: Multiplies the logits.
        softcap: Bounds the logits, if not ``None``.
    """

    layer: int
    query_BhTd: Tensor
    key_BgTd: Tensor
    mask: Tensor
    scaling: float
    softcap: float | None


_listeners: dict[nn.Module, list[Callable[..., None]]] = {}


@contextmanager
def tapped(parts: Parts, listen: Callable[[Attending], None]) -> Iterator[None]:
    """Call ``listen`` at every self-attention of the decoder; the outputs stay what they were.

    The decoder computes attention by sdpa meanwhile, or by its own eager form if that is what it was set to.

    Raises:
        ConfigurationError: Inside, if an attention has sinks or other keys than the decoder's own tokens.
    """
    decoder: Any = parts.decoder
    before = decoder.config._attn_implementation
    layers = {module: index for index, layer in enumerate(parts.layers) for module in layer.modules()}

    def hear(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        if mask is None or mask.shape[-2:] != (query.shape[2], key.shape[2]) or options.get("s_aux") is not None:
            raise ConfigurationError(
                f"{type(module).__name__} is no plain masked self-attention, so its weights are not known"
            )
        softcap = options.get("softcap")
        listen(Attending(layers[module], query, key, mask, options["scaling"], softcap))

    if before not in TAPPED.values():
        decoder.set_attn_implementation(TAPPED["eager" if before == "eager" else "sdpa"])
    for module in layers:
        _listeners.setdefault(module, []).append(hear)
    try:
        yield
    finally:
        for module in layers:
            _listeners[module].remove(hear)
            if not _listeners[module]:
                del _listeners[module]
        decoder.set_attn_implementation(before)


def _attention(base: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        for hear in _listeners.get(module, ()):
            hear(module, query, key, attention_mask, options)
        own_eager = named(f"{type(module).__module__}.eager_attention_forward")
        return ALL_ATTENTION_FUNCTIONS.get_interface(base, own_eager)(
            module, query, key, value, attention_mask, **options
        )

    return attend


def _mask(base: str) -> Callable[..., Tensor]:
    def make(*args: Any, **options: Any) -> Tensor:
        # sdpa would rather have no mask than a causal one
        return ALL_MASK_ATTENTION_FUNCTIONS[base](*args, **{**options, "allow_is_causal_skip": False})

    return make


for _base, _name in TAPPED.items():
    AttentionInterface.register(_name, _attention(_base))
    AttentionMaskInterface.register(_name, _mask(_base))
