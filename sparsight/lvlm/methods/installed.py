"""What stands around a model, its decoder and its layers while a recipe works.

Shape legend: B batch, T tokens, Q queries, K keys, h heads, d channels of a head, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.edits.base import AttentionEdit, FeedForwardEdit, LayerEdit, MaskProgram, PositionEdit, Where
from blocks.tokens.base import Decision, Edit, FeatureReducer, LayerPolicy, Sight
from blocks.tokens.token_map import ANSWER, PAD, TokenMap, chosen, put, rows
from sparsight.lvlm.methods.attention import Attention
from sparsight.lvlm.methods.conflicts import first_norm, layer_parts
from sparsight.lvlm.methods.guard import CacheGuard
from sparsight.lvlm.methods.kernels import as_kernel_reads
from sparsight.lvlm.methods.passes import Passes
from sparsight.lvlm.methods.reduction import reduce_images, tower_scores
from sparsight.lvlm.methods.spans import read_tokens, seeds_of
from sparsight.lvlm.model.tower import Parts

Forward = Callable[..., Any]
WHOLE = -1  # in place of the number of a method, where a whole layer is another one


class Installed(Passes, Attention):
    """Methods at work in a model.

    Args:
        methods: In their order.
        model: The model.
        parts: Its parts.
        learns: Whether the model trains, whatever mode it is in.
    """

    def __init__(self, methods: Sequence[Edit], model: Any, parts: Parts, *, learns: bool = False) -> None:
        super().__init__(methods, model, parts, learns=learns)
        policies: list[LayerPolicy] = self.of(LayerPolicy)
        looking = [*policies, *self.of(MaskProgram)]
        self.renumbers = any(policy.positions == "renumber" for policy in policies)
        self.tapped = {
            n - 1 for n in range(1, self.depth) if any(edit.looks and edit.at(n, self.depth) for edit in looking)
        }
        self.feeds = bool(self.of(FeedForwardEdit)) or any(policy.feeds for policy in policies)

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
        self._guard = guard = self._met()
        if self.renumbers and positions.ndim > 2:
            raise ValueError("policies number positions anew, which have several axes in this model: keep them")
        for features in inputs.pop("deepstack_visual_embeds", None) or []:
            where = inputs["visual_pos_masks"][..., None]
            guard.deep.append(torch.zeros_like(embeds).masked_scatter(where, features.to(embeds)))
        has_images = bool(guard.prompt.visual.any())
        for edit in self.of(AttentionEdit) if has_images else ():
            if edit.tower_layer is not None:
                guard.vision[edit.tower_layer] = tower_scores(edit, guard.prompt, self.pictures)
        for reducer in self.of(FeatureReducer) if has_images else ():
            asked = None if reducer.decoder_layer is None else self.asked(forward, inputs, guard, reducer.decoder_layer)
            mask = inputs.get("attention_mask")
            block = self.encoders.get(reducer)
            inputs |= reduce_images(
                reducer, guard, self.pictures, embeds, positions, mask, asked, learns=self.training, block=block
            )
        for edit in self.of(PositionEdit):
            given = inputs.get("position_ids")
            inputs |= _moved(edit, guard, positions if given is None else given, inputs.get("attention_mask"))
        guard.entering = inputs["inputs_embeds"].detach() if self.of(LayerPolicy) else None
        answer = forward(**inputs)
        guard.taps.clear()
        guard.entering = None
        if guard.changed:
            last = answer.last_hidden_state
            answer.last_hidden_state = put(last.new_zeros(embeds.shape), guard.origin, guard.valid, last)
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
        if self.guard.answering:
            return self._answered(layer, forward, hidden, inputs)
        guard = self.guard
        decision, path, part = None, guard.path, guard.local
        for policy in self.of(LayerPolicy, layer):
            decision = policy.decide(self._sight(policy, layer, hidden))
            hidden = hidden if decision.mix is None else decision.mix.to(hidden) @ hidden
        entering, index = hidden, None
        if decision is not None:
            index, valid = chosen(_computed_tokens(decision, part))
            part, path, entering = part.take(index, valid), path.gather(1, index), rows(hidden, index)
            if not decision.returns:
                guard.narrow(index, valid)
                part, path = guard.local, guard.path
            guard.scale = None if decision.scale is None else rows(decision.scale[..., None], index)
        goes_around = decision is not None and decision.returns
        guard.changed = guard.changed or goes_around
        guard.fresh[layer] = guard.seen[layer] = part
        table = inputs.get("position_embeddings")
        if guard.narrowed or goes_around:
            inputs["position_ids"] = rows(inputs.get("position_ids"), path)
            if table is not None:
                gathered = tuple(rows(part, path) for part in table)
                inputs["position_embeddings"] = guard.renumbered(layer, table) if self.renumbers else gathered
        leaving = self._computed(layer, forward, entering, path, inputs)
        guard.scale = None
        if goes_around:
            assert index is not None
            leaving = put(hidden, index, part.present, leaving)
        return leaving + rows(guard.deep[layer], guard.path) if layer < len(guard.deep) else leaving

    def _sight(self, policy: LayerPolicy, layer: int, hidden: Tensor) -> Sight:
        before = self.guard.taps.get(layer - 1) if policy.looks else None
        if before is not None and before.queries.kind.shape != self.guard.local.kind.shape:
            raise ValueError(
                f"{type(policy).__name__} looks at layer {layer - 1}, around which tokens go: give it another layer"
            )
        entering = rows(self.guard.entering, self.guard.path)
        begun = self.guard.prompt.visual.sum(1)
        normed = first_norm(self.layers[layer])(hidden) if policy.norms else None
        return Sight(layer, self.depth, self.guard.local, hidden, before, entering, begun, normed, self.training)

    def _answered(self, layer: int, forward: Forward, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        guard, count, computes = self.guard, hidden.shape[1], None
        for policy in self.of(LayerPolicy, layer):
            found = policy.answers(layer, hidden, first_norm(self.layers[layer])(hidden) if policy.norms else None)
            if found is not None:
                computes, scale = found
                guard.scale = None if scale is None else scale[..., None]
        if computes is not None and not bool(computes.all()):
            kind = guard.seen[layer].kind.clone()
            kind[:, -count:] = kind[:, -count:].masked_fill(~computes, PAD)
            guard.seen[layer], guard.changed = guard.seen[layer]._replace(kind=kind), True
        guard.fresh[layer] = guard.seen[layer].span(-count)
        table = inputs.get("position_embeddings")
        if layer in guard.tables and table is not None:
            inputs["position_embeddings"] = guard.renumbered(layer, table)
        leaving = self._computed(layer, forward, hidden, None, inputs)
        guard.scale = None
        return leaving if computes is None else torch.where(computes[..., None], leaving, hidden)

    def _computed(self, layer: int, forward: Forward, hidden: Tensor, path: Tensor | None, inputs: Any) -> Tensor:
        guard = self.guard
        for edit in self.of(LayerEdit, layer):
            guard.changed, name = True, (layer, WHOLE)
            parts = layer_parts(self.layers[layer])
            leaving, state = edit.compute(hidden, parts, guard.fresh[layer], layer, guard.factors.get(name))
            guard.factors[name] = state.detach()
            return leaving
        programs = [each for each in self.of(MaskProgram, layer) if self.training or not each.trains_only]
        if guard.changed or self.of(MaskProgram):
            before = None if guard.answering else guard.taps.get(layer - 1)
            where = Where(layer, self.depth, self.heads, before, guard.first)
            given, held = inputs.get("attention_mask"), inputs.get("past_key_values")
            allowed = guard.mask(layer, given, path, held, programs, where)
            inputs["attention_mask"] = as_kernel_reads(allowed, self.kernel, hidden.dtype)
        for number, edit in enumerate(self.of(AttentionEdit)):
            marks = edit.mark(hidden) if self.edits(edit, layer) else None
            if marks is not None:
                old = [guard.marks[layer, number]] if guard.answering else []
                guard.marks[layer, number] = torch.cat([*old, marks], 1)
        self.tables = inputs.get("position_embeddings")
        return forward(hidden, **inputs)

    def feed(self, layer: int, module: nn.Module, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """The feed-forward part of a layer, changed and scaled."""
        if self._guard is None:
            return forward(hidden)
        work = forward
        for edit in self.of(FeedForwardEdit, layer):
            work = _fed(edit, work, module, self.guard.fresh[layer])
        out = work(hidden)
        return out if self.guard.scale is None else out * self.guard.scale.to(out)


def _moved(edit: PositionEdit, guard: CacheGuard, positions: Tensor, mask: Any) -> dict[str, Any]:
    """Positions and mask of a prompt with what an edit adds; the guard remembers it for the answer."""
    if positions.ndim > 2:
        raise ValueError(f"{type(edit).__name__} adds to positions, which have several axes in this model")
    tokens = guard.prompt
    added = edit.added(tokens)
    last = added.gather(1, tokens.last[:, None])
    guard.shift, guard.changed = guard.shift - last, True
    moved = positions + torch.where(tokens.kind == ANSWER, last, added)
    return {"position_ids": moved, "attention_mask": tokens.present.long() if mask is None else mask}


def _fed(edit: FeedForwardEdit, forward: Callable[[Tensor], Tensor], module: nn.Module, queries: TokenMap) -> Any:
    return lambda hidden: edit.feed(forward, module, hidden, queries)


def _computed_tokens(decision: Decision, tokens: TokenMap) -> Tensor:
    keep = decision.keep if decision.returns else decision.keep | ~tokens.visual
    return keep & tokens.present
