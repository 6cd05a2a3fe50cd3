"""What stands around a model, its decoder, its layers and its attention kernels while a recipe works.

Shape legend: B batch, T tokens, Q queries, K keys, h heads, d channels of a head, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.edits.base import AttentionEdit, HeadEdit, MaskProgram
from blocks.tokens.base import Edit, FeatureReducer, LayerPolicy
from blocks.tokens.token_map import TokenMap, chosen, put, rows
from sparsight.lvlm.methods.guard import CacheGuard, GuardedCache, as_bools, guarded
from sparsight.lvlm.methods.kernels import as_kernel_reads, attention_weights
from sparsight.lvlm.methods.pictures import Pictures
from sparsight.lvlm.methods.reduction import reduce_images
from sparsight.lvlm.methods.spans import present_tokens, read_tokens, seeds_of
from sparsight.lvlm.model.answers import labels_now
from sparsight.lvlm.model.tower import Parts

PIXELS = ("pixel_values", "mm_encoder_outputs")
VIDEOS = ("pixel_values_videos", "video_grid_thw")
Forward = Callable[..., Any]


class _Prompt(NamedTuple):
    """What a prompt's guard is made of once its images are encoded."""

    ids: Tensor
    present: Tensor
    labels: Tensor | None
    shows: bool  # images


class Installed:
    """Methods at work in a model.

    Args:
        methods: In their order.
        model: The model.
        parts: Its parts.
    """

    def __init__(self, methods: Sequence[Edit], model: Any, parts: Parts) -> None:
        self.methods, self.depth = list(methods), len(parts.layers)
        decoder: Any = parts.decoder
        self.config, self.image_id = decoder.config, parts.image_token_id
        self.layer_of = {module: number for number, layer in enumerate(parts.layers) for module in layer.modules()}
        looking = [reducer for reducer in self.of(FeatureReducer) if reducer.tower_layer is not None]
        self.pictures = Pictures(model, parts, looking)
        self.tower_configs = [tower.config for tower in self.pictures.towers]
        policies = self.of(LayerPolicy)
        self.renumbers = any(policy.positions == "renumber" for policy in policies)
        self.tapped = {n - 1 for n in range(1, self.depth) if any(policy.at(n, self.depth) for policy in policies)}
        self._guard: CacheGuard | None = None  # of the pass that is being computed
        self._prompt: _Prompt | None = None

    def of(self, kind: type[Any], layer: int | None = None) -> list[Any]:
        """Methods of a kind, at a layer if one is given."""
        found = [method for method in self.methods if isinstance(method, kind)]
        return found if layer is None else [method for method in found if method.at(layer, self.depth)]

    @property
    def guard(self) -> CacheGuard:
        """Of the pass that is being computed."""
        assert self._guard is not None
        return self._guard

    # -- the whole model -------------------------------------------------------------------------------------------

    def model(self, forward: Forward, *args: Any, **inputs: Any) -> Any:
        """A prompt gets a guard, which stays with its cache; an answer finds it there.

        Raises:
            ValueError: The inputs are no prompt from its beginning, and do not go on from one that was read here.
        """
        if args:
            raise ValueError("inputs of a model under a recipe must be named")
        held = inputs.get("past_key_values")
        if isinstance(held, GuardedCache):
            self._guard = _going_on(held.guard, inputs)
        else:
            self._prompt = _begun(held, inputs)
        try:
            answer = forward(**inputs)
            guard = self.guard
        finally:
            self._guard = self._prompt = None
        guard.answering = True
        if answer.past_key_values is not None:
            guarded(answer.past_key_values, guard)
        return answer

    # -- the decoder -----------------------------------------------------------------------------------------------

    def decoder(self, forward: Forward, **inputs: Any) -> Any:
        """Reduces images, and gives back as many tokens as came."""
        embeds = inputs["inputs_embeds"]
        count, start = embeds.shape[1], self._guard.outer if self._guard is not None else 0
        positions = inputs.get("position_ids")
        if positions is None:
            positions = torch.arange(start, start + count, device=embeds.device)[None]
        if self._guard is not None:
            self.guard.grow(count)
            if self.guard.changed or self.of(MaskProgram):
                inputs |= {"position_ids": positions - self.guard.shift, "attention_mask": None}
            return forward(**inputs)
        self._guard = self._met()
        if self.renumbers and positions.ndim > 2:
            raise ValueError("policies number positions anew, which have several axes in this model: keep them")
        for features in inputs.pop("deepstack_visual_embeds", None) or []:
            where = inputs["visual_pos_masks"][..., None]
            self.guard.deep.append(torch.zeros_like(embeds).masked_scatter(where, features.to(embeds)))
        for reducer in self.of(FeatureReducer) if bool(self.guard.prompt.visual.any()) else ():
            mask = inputs.get("attention_mask")
            inputs |= reduce_images(reducer, self.guard, self.pictures, embeds, positions, mask)
        self.pictures.forget()
        answer = forward(**inputs)
        if self.guard.changed:
            last = answer.last_hidden_state
            answer.last_hidden_state = put(last.new_zeros(embeds.shape), self.guard.origin, self.guard.valid, last)
        return answer

    def _met(self) -> CacheGuard:
        """The guard of a prompt whose images are encoded."""
        assert self._prompt is not None
        ids, present, labels, shows = self._prompt
        tokens = read_tokens(
            ids,
            present,
            image_id=self.image_id,
            layouts=self.pictures.layouts if shows else (),
            tiles=self.pictures.family.tiles,
            labels=labels,
        )
        return CacheGuard(tokens, self.config, seeds_of(ids, tokens))

    # -- a layer ---------------------------------------------------------------------------------------------------

    def layer(self, layer: int, forward: Forward, hidden: Tensor, **inputs: Any) -> Tensor:
        """Drops tokens, and computes the others with the mask and the positions that they need."""
        guard, table = self.guard, inputs.get("position_embeddings")
        path = None if guard.answering else guard.path
        if guard.answering:
            guard.fresh[layer] = guard.seen[layer].span(-hidden.shape[1])
        else:
            for policy in self.of(LayerPolicy, layer):
                keep = policy.keep(guard.local, guard.taps[layer - 1])
                index, valid = chosen((keep | ~guard.local.visual) & guard.local.present)
                hidden, path = rows(hidden, index), guard.path.gather(1, index)
                guard.narrow(index, valid)
            guard.fresh[layer] = guard.seen[layer] = guard.local
            if guard.narrowed:
                inputs["position_ids"] = rows(inputs.get("position_ids"), guard.path)
                if table is not None:
                    inputs["position_embeddings"] = tuple(rows(part, guard.path) for part in table)
        renumbered = layer in guard.lag if guard.answering else guard.narrowed and self.renumbers
        if renumbered and table is not None:
            inputs["position_embeddings"] = guard.renumbered(layer, table)
        leaving = self._computed(layer, forward, hidden, path, inputs)
        if not guard.answering and layer < len(guard.deep):
            leaving = leaving + rows(guard.deep[layer], guard.path)
        return leaving

    def _computed(self, layer: int, forward: Forward, hidden: Tensor, path: Tensor | None, inputs: Any) -> Tensor:
        guard, programs = self.guard, self.of(MaskProgram, layer)
        if guard.changed or programs:
            allowed = guard.mask(layer, inputs.get("attention_mask"), path, inputs.get("past_key_values"), programs)
            inputs["attention_mask"] = as_kernel_reads(allowed, self.config._attn_implementation, hidden.dtype)
        for number, edit in enumerate(self.of(AttentionEdit)):
            marks = edit.mark(hidden) if edit.at(layer, self.depth) else None
            if marks is not None:
                old = [guard.marks[layer, number]] if guard.answering else []
                guard.marks[layer, number] = torch.cat([*old, marks], 1)
        return forward(hidden, **inputs)

    # -- an attention kernel ---------------------------------------------------------------------------------------

    def attend(
        self, base: Forward, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The kernel's output with changed weights and heads; remembers the rows that policies ask for."""
        self.pictures.heard(module, query, key, options.get("scaling", 1.0))
        out, weights = base(module, query, key, value, mask, **options)
        layer = self.layer_of.get(module)
        if layer is None or self._guard is None:
            return out, weights
        guard, queries = self.guard, self.guard.fresh[layer]
        keys = guard.seen[layer].fitted(key.shape[2])
        edits = [(number, edit) for number, edit in enumerate(self.of(AttentionEdit)) if edit.at(layer, self.depth)]
        is_tapped = layer in self.tapped and not guard.answering
        if edits or is_tapped:
            if mask is None:
                allowed = (keys.present[:, None] & (queries.place[:, :, None] >= keys.place[:, None]))[:, None]
            else:
                allowed = as_bools(mask)
            allowed = allowed[..., : key.shape[2]].expand(len(query), -1, -1, -1)
        if is_tapped:
            sample, last = torch.arange(len(query), device=query.device), queries.last
            found = attention_weights(
                query[sample, :, last][:, :, None], key, allowed[sample, :, last][:, :, None], options
            )
            guard.taps[layer] = found[:, :, 0, : queries.kind.shape[1]].detach()  # a static cache is longer
        for number, edit in edits:
            marks = guard.marks.get((layer, number))
            out = _difference(edit, out, (query, key, value, allowed), (queries, keys), marks, options)
        for heads in self.of(HeadEdit, layer):
            out = heads.edit(out, layer)
        return out, weights


def _difference(
    edit: AttentionEdit,
    out: Tensor,
    attending: tuple[Tensor, Tensor, Tensor, Tensor],
    tokens: tuple[TokenMap, TokenMap],
    marks: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Outputs (B, Q, h, d) with what changed weights add to them at the queries that an edit asks for."""
    (query, key, value, allowed), (queries, keys) = attending, tokens
    asked = edit.rows(queries)
    if not len(asked):
        return out
    old = attention_weights(query[:, :, asked], key, allowed[:, :, asked], options)
    marks = None if marks is None else F.pad(marks, (0, max(key.shape[2] - marks.shape[1], 0)))[:, -key.shape[2] :]
    new = edit.weights(old, TokenMap(*(part[:, asked] for part in queries)), keys, marks)
    extra = (new - old).to(value) @ value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    return out.index_add(1, asked, extra.transpose(1, 2))


def _going_on(guard: CacheGuard, inputs: dict[str, Any]) -> CacheGuard:
    """The guard of an answer."""
    ids = inputs.get("input_ids")
    if any(inputs.get(name) is not None for name in (*PIXELS, *VIDEOS[:1])):
        raise ValueError("an image came after the answer began: start with a new cache")
    if ids is None or len(ids) != len(guard.prompt.kind):
        raise ValueError(
            f"the cache under a recipe holds {len(guard.prompt.kind)} samples: go on from all, as input_ids"
        )
    return guard


def _begun(held: Any, inputs: dict[str, Any]) -> _Prompt:
    """What is known of a prompt before its images are encoded."""
    ids = inputs.get("input_ids")
    if ids is None or (held is not None and held.get_seq_length() > 0):
        raise ValueError("under a recipe a prompt is read from its beginning, as input_ids")
    if any(inputs.get(name) is not None for name in VIDEOS):
        raise ValueError("recipes do not serve videos: give their frames as images")
    positions = inputs.get("position_ids")
    if positions is not None and inputs.get("attention_mask") is None and bool((positions.diff() < 0).any()):
        raise ValueError("recipes do not serve packed rows: set data.packing to false")
    labels = inputs.get("labels")
    shows = any(inputs.get(name) is not None for name in PIXELS)
    return _Prompt(
        ids, present_tokens(inputs.get("attention_mask"), ids), labels_now() if labels is None else labels, shows
    )
