"""Taking decoder layers out of an image-text model, so that transformers loads what remains.

The number of layers stands in the configuration, in lists with an entry for every layer, in lists of layer numbers, and
in every attention (for its place in the cache). A model whose layers were cut without them still runs, and then loads
with random layers at its end.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from sparsight.common.errors import need_kind
from sparsight.common.plain import setting
from sparsight.lvlm.model.tower import Parts, find_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# options that tie layers to each other or to images: the message says how
COUPLINGS = {
    "cross_attention_layers": "some of its layers attend to images",
    "cross_layer_interval": "layers that attend to images stand at fixed intervals",
    "num_kv_shared_layers": "its last layers share keys and values with earlier ones",
    "hidden_size_per_layer_input": "its token embeddings hold a part for every layer",
    "n_layers_per_attn_res_block": "its layers stand in blocks that attend to each other",
    "_heterogeneity_spec": "its layers have configurations of their own",
    "deepstack_layer_map": "image features enter before layers that it names by number",
    "spatial_target_layers": "image features enter before layers that it names by number",
}
LAYER_ENTRIES = (  # lists with an entry for every layer
    "activation_sparsity_pattern",
    "indexer_types",
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "no_rope_layers",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
    "swiglu_limits",
    "swiglu_limits_shared",
)
LAYER_NUMBERS = (  # lists of layer numbers
    "attn_layer_indices",
    "full_attn_idxs",
    "kv_source_layers",
    "local_layer_ids",
    "mlp_only_layers",
    "moe_layers",
    "rope_scaling_layers",
)
KINDS = ("layer_types", "layers_block_type")  # of them, those that say of what kind a layer is
ATTENTIONS = ("attn_layer_indices", "full_attn_idxs")  # and those that name the layers with attention
LAYER_COUNTS = ("first_k_dense_replace", "max_window_layers")  # so many of the first layers


def remove_layers(model: PreTrainedModel, removed: Collection[int]) -> list[int]:
    """Take decoder layers out, in place: module list, numbers inside the layers, and configuration.

    Args:
        model: An image-text model.
        removed: 0-based layers.

    Returns:
        The numbers that the remaining layers had.

    Raises:
        ValueError: A layer is not there, none would remain, or the architecture ties layers together.
    """
    need_kind("removed", removed, Collection, "numbers of layers, as sparsight.select_layers(model, rule) gives them")
    parts = find_parts(model)
    depth = len(parts.layers)
    check_removable(model, removed, depth=depth)
    kept = [index for index in range(depth) if index not in set(removed)]
    layers = [parts.layers[index] for index in kept]
    parent, _, name = parts.layers_name.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers))
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = index  # the place in the cache
    for config in text_configs(model, parts):
        _shorten(config, kept, depth)
    return kept


@runtime_checkable
class Configured(Protocol):
    """A module with a configuration of its own."""

    config: Any


def text_configs(model: PreTrainedModel, parts: Parts) -> list[Any]:
    """The configuration of the text model, wherever a copy of it is in use."""
    found = [model.config.get_text_config(decoder=True)]
    if isinstance(parts.decoder, Configured):
        found.append(parts.decoder.config)
    return list({id(config): config for config in found}.values())


def check_removable(model: PreTrainedModel, removed: Collection[int], *, depth: int) -> None:
    """Make sure that these layers can leave without others noticing.

    Raises:
        ValueError: They cannot; the message names the option of the model's configuration and why.
    """
    if not set(removed) <= set(range(depth)) or len(set(removed)) >= depth:
        raise ValueError(f"layers to remove must be some, not all, of 0 to {depth - 1}; got {removed!r}")
    config = model.config.get_text_config(decoder=True)
    kind = type(model).__name__
    for option, why in COUPLINGS.items():
        value = setting(config, option) or setting(model.config, option)
        if removed and value:
            raise ValueError(f"{kind} cannot lose layers: {why} ({option}: {value})")
    if removed and (setting(config, "decoder_sparse_step") or 1) > 1:
        raise ValueError(f"{kind} cannot lose layers: every {config.decoder_sparse_step}th is a mixture of experts")
    shared = setting(config, "kv_source_layers")
    if removed and shared and list(shared) != list(range(depth)):
        raise ValueError(f"{kind} cannot lose layers: some read keys and values of others (kv_source_layers: {shared})")
    attending = attention_layers(config, depth)
    if attending and set(attending) <= set(removed):
        raise ValueError(
            f"{kind} cannot lose layers {attending} together: they are its last with full attention, without which its "
            "cache does not know how long a text is; keep one of them"
        )
    unknown = _unknown_lists(config, depth=depth, known=(*LAYER_ENTRIES, *LAYER_NUMBERS))
    if config is not model.config:  # what stands there is not shortened, and lists are as long as layers are by chance
        unknown += _unknown_lists(model.config, depth=None, known=())
    if removed and unknown:
        raise ValueError(
            f"{kind} cannot lose layers: its configuration has {', '.join(unknown)}, of which Sparsight does not know "
            "what becomes of it then; if it says nothing about layers, take it out of config.json"
        )
    deepstack = len(setting(setting(model.config, "vision_config"), "deepstack_visual_indexes") or ())
    tied = sorted(index for index in removed if index < deepstack)
    if tied:
        raise ValueError(
            f"{kind} adds image features after each of its first {deepstack} layers (deepstack_visual_indexes): layers "
            f"{tied} cannot be removed, layers {deepstack} to {depth - 1} can"
        )


def attention_layers(config: Any, depth: int) -> list[int]:
    """The layers with keys and values among others (convolutions, linear attention); none if all are alike."""
    for option in KINDS:
        kinds = setting(config, option) or ()
        found = [layer for layer, kind in enumerate(kinds) if "attention" in kind and "linear" not in kind]
        found += [layer for layer, kind in enumerate(kinds) if kind == "hybrid"]  # attention beside a state
        if len(kinds) == depth and found and len(found) < depth:
            return found
    for option in ATTENTIONS:
        layers = setting(config, option)
        if layers:
            return list(layers)
    return []


def _unknown_lists(config: Any, *, depth: int | None, known: Collection[str]) -> list[str]:
    """Lists of a configuration that may say something about decoder layers: by their names, and by this length."""
    found = []
    for option, value in vars(config).items():
        if not isinstance(value, (list, tuple)) or not value or option in known:
            continue
        named = any(word in option for word in ("layer", "idx", "indices"))
        # of layers that follow the decoder; ids of tokens; of the vision tower
        other = option.startswith("mtp_") or "token" in option or "vision" in option
        if (len(value) == depth or named) and not other:
            found.append(option)
    return found


def _shorten(config: Any, kept: list[int], depth: int) -> None:
    """Write into a text configuration that only these layers remain."""
    for option in LAYER_ENTRIES:
        value = vars(config).get(option)  # not a property that follows from others
        if isinstance(value, (list, tuple)) and len(value) == depth:
            setattr(config, option, [value[index] for index in kept])
    for option in LAYER_NUMBERS:
        layers = setting(config, option)
        if layers:
            setattr(config, option, [new for new, old in enumerate(kept) if old in layers])
    for option in LAYER_COUNTS:
        count = setting(config, option)
        if isinstance(count, int):
            setattr(config, option, sum(old < count for old in kept))
    config.num_hidden_layers = len(kept)
