"""What does not go together: methods with each other, with a model, or with a way to generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from blocks.edits.base import (
    AttentionEdit,
    AttentionFunction,
    FeedForwardEdit,
    HeadEdit,
    LayerEdit,
    LayerParts,
    LogitEdit,
    MaskProgram,
    PositionEdit,
)
from blocks.tokens.base import Edit, FeatureReducer, LayerPolicy
from sparsight.common.plain import setting
from sparsight.lvlm.methods.guard import RECURRENT
from sparsight.lvlm.methods.kernels import KERNELS

FEED_FORWARD = ("mlp", "feed_forward")
FIRST_NORMS = ("input_layernorm", "operator_norm")
SECOND_NORMS = ("pre_feedforward_layernorm", "ffn_norm", "post_attention_layernorm")  # the first that is there
LAST_NORM = "post_feedforward_layernorm"
ONCE = {"num_beams": 1, "num_return_sequences": 1, "penalty_alpha": None, "prompt_lookup_num_tokens": None}


def name_of(method: Edit) -> str:
    """A method's name."""
    return type(method).__name__


def check_together(methods: Sequence[Edit]) -> None:
    """See that methods can work together on any model.

    Raises:
        ValueError: Two exclude each other.
    """
    reducers = [method for method in methods if isinstance(method, FeatureReducer)]
    policies = [method for method in methods if isinstance(method, LayerPolicy)]
    if len(reducers) > 1:
        raise ValueError(f"{' and '.join(map(name_of, reducers))} both reduce images: choose one")
    for program in methods:
        if isinstance(program, MaskProgram) and program.needs_grid and any(edit.merges for edit in reducers):
            raise ValueError(f"{name_of(program)} needs the grid that {name_of(reducers[0])} merges away")
    if len({policy.positions for policy in policies}) > 1:
        told = ", ".join(f"{name_of(policy)} {policy.positions}" for policy in policies)
        raise ValueError(f"policies count positions in different ways ({told}): set `positions` of all to one of them")
    moving = [method for method in methods if isinstance(method, PositionEdit)]
    if moving and any(policy.positions == "renumber" for policy in policies):
        raise ValueError(
            f"{name_of(policies[0])} numbers positions anew, to which {name_of(moving[0])} adds: set `positions` of "
            "the first to keep"
        )
    if any(policy.positions == "renumber" for policy in policies) and any(r.positions == "keep" for r in reducers):
        raise ValueError(
            f"{name_of(policies[0])} numbers positions anew, {name_of(reducers[0])} keeps gaps: set `positions` of "
            "both to one of them"
        )


def check_model(methods: Sequence[Edit], config: Any, layers: nn.ModuleList) -> None:
    """See that methods can work on a model.

    Args:
        methods: All of a recipe.
        config: Of its text model.
        layers: Of its decoder.

    Raises:
        ValueError: They cannot.
    """
    kernel, depth = config._attn_implementation, len(layers)
    if kernel not in KERNELS:
        raise ValueError(f"recipes do not serve the attention kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    kinds = setting(config, "layer_types") or [""] * depth
    for method in methods:
        found = [layer for layer in range(depth) if method.at(layer, depth)]
        if not found:
            raise ValueError(f"{name_of(method)} is about none of the {depth} layers")
        inside = isinstance(method, (MaskProgram, AttentionEdit))
        if inside and all(kinds[layer] in RECURRENT for layer in found):
            raise ValueError(f"{name_of(method)} needs attention, which none of layers {found} has")
        for layer in found:
            read = layer - 1 if isinstance(method, (LayerPolicy, MaskProgram)) and method.looks else layer
            if read < 0:
                raise ValueError(f"{name_of(method)} drops tokens before layer 0, before which there is no attention")
            reads = isinstance(method, HeadEdit) or read < layer
            if reads and kinds[read] in RECURRENT:
                raise ValueError(f"{name_of(method)} needs attention in layer {read}, which is of kind {kinds[read]}")
            if isinstance(method, LayerPolicy) and method.skips_answers and kinds[layer] in RECURRENT:
                raise ValueError(
                    f"{name_of(method)} needs attention in layer {layer}, which is of kind {kinds[layer]}, whose state "
                    "would know tokens of the answer that go around it"
                )
        adds = isinstance(method, LogitEdit) and not isinstance(method, AttentionFunction)
        if adds and kernel == "flex_attention":
            raise ValueError(
                f"{name_of(method)} adds to logits, which flex_attention is not told of here: set attn_implementation "
                "to sdpa or eager"
            )
        asked = method.decoder_layer if isinstance(method, FeatureReducer) else None
        if asked is not None and (not 0 <= asked < depth or kinds[asked] in RECURRENT):
            raise ValueError(f"{name_of(method)} needs attention in layer {asked}; there are 0 to {depth - 1}")
        if isinstance(method, FeedForwardEdit) or (isinstance(method, LayerPolicy) and method.feeds):
            feed_forward(layers[found[0]])
        if isinstance(method, LayerPolicy) and method.norms:
            first_norm(layers[found[0]])
        if isinstance(method, LayerEdit):
            _check_whole(method, found, kinds, layers, methods)
    by_layer: dict[int, list[str]] = {}
    for policy in (method for method in methods if isinstance(method, LayerPolicy)):
        for layer in range(depth):
            if policy.at(layer, depth):
                by_layer.setdefault(layer, []).append(name_of(policy))
    for layer, names in by_layer.items():
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} both drop tokens before layer {layer}: give one another layer")
    whole = [method for method in methods if isinstance(method, AttentionFunction)]
    for layer in range(depth):
        names = [name_of(method) for method in whole if method.at(layer, depth)]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} both compute attention in layer {layer}: choose one")


def feed_forward(layer: nn.Module) -> nn.Module:
    """The feed-forward part of a decoder layer.

    Raises:
        ValueError: It has none of a known name.
    """
    return _child(layer, FEED_FORWARD, "feed-forward part")


def first_norm(layer: nn.Module) -> nn.Module:
    """The norm that a decoder layer begins with.

    Raises:
        ValueError: It has none of a known name.
    """
    return _child(layer, FIRST_NORMS, "first norm")


def layer_parts(layer: nn.Module) -> LayerParts:
    """Norms and feed-forward part of a decoder layer.

    Raises:
        ValueError: One has no known name.
    """
    held = dict(layer.named_children())
    second = next((name for name in SECOND_NORMS if name in held), SECOND_NORMS[-1])
    norm = _child(layer, (second,), "second norm")
    return LayerParts(first_norm(layer), norm, feed_forward(layer), held.get(LAST_NORM))


def _check_whole(
    method: LayerEdit, found: Sequence[int], kinds: Sequence[str], layers: nn.ModuleList, methods: Sequence[Edit]
) -> None:
    """See that layers can be replaced whole.

    Raises:
        ValueError: They cannot.
    """
    first = next(layer for layer, kind in enumerate(kinds) if kind not in RECURRENT)
    for layer in found:
        if kinds[layer] in RECURRENT:
            raise ValueError(f"{name_of(method)} needs attention in layer {layer}, which is of kind {kinds[layer]}")
        if layer == first:
            raise ValueError(f"{name_of(method)} cannot replace layer {first}, by whose attention caches count tokens")
        layer_parts(layers[layer])
        for other in methods:
            reads = isinstance(other, (LayerPolicy, MaskProgram)) and other.looks and other.at(layer + 1, len(layers))
            reads = reads or (isinstance(other, FeatureReducer) and other.decoder_layer == layer)
            if reads or (isinstance(other, LayerEdit) and other is not method and other.at(layer, len(layers))):
                raise ValueError(f"{name_of(other)} asks for layer {layer}, in whose place {name_of(method)} works")


def _child(layer: nn.Module, names: Sequence[str], what: str) -> nn.Module:
    found = [part for name, part in layer.named_children() if name in names]
    if len(found) != 1:
        held = [name for name, _ in layer.named_children()]
        raise ValueError(f"{type(layer).__name__} has no {what} of a known name: it holds {', '.join(held)}")
    return found[0]


def check_generation(options: Mapping[str, Any], config: Any) -> None:
    """See that answers are generated one token after the other, behind a cache.

    Args:
        options: Of ``generate``.
        config: What counts besides.

    Raises:
        ValueError: They are not.
    """
    if options.get("use_cache", setting(config, "use_cache")) is False:
        raise ValueError("methods would decide anew at every step: generate with use_cache=True under a recipe")
    if options.get("assistant_model") is not None:
        raise ValueError("assisted decoding takes tokens back, which a recipe does not follow")
    for name, value in ONCE.items():
        found = options.get(name, setting(config, name))
        if found not in (None, value):
            raise ValueError(f"a recipe follows one answer a prompt, token by token: leave {name} at {value}")
