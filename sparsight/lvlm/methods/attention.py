"""What stands around attention kernels while a recipe works.

Shape legend: B batch, Q queries, K keys, h heads, g heads of keys, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blocks.edits.base import AttentionEdit, AttentionFunction, ComparedHeadEdit, HeadEdit, LogitEdit, Rows, speaking
from blocks.tokens.attending import Attending, masked_softmax
from blocks.tokens.token_map import TokenMap
from sparsight.lvlm.methods.kernels import as_bools, as_kernel_reads, known
from sparsight.lvlm.methods.state import State

Forward = Callable[..., Any]


class Enough(Exception):
    """A pass up to a layer has come there."""

    def __init__(self, attending: Attending) -> None:
        super().__init__()
        self.attending = attending


class Attention(State):
    """Methods around the kernels of decoder and vision towers."""

    def attend(
        self, base: Forward, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The kernel's output with changed weights and heads; remembers what policies ask for."""
        self.pictures.heard(module, query, key, options.get("scaling", 1.0))
        layer = self.layer_of.get(module)
        if layer is None or self._guard is None:
            return base(module, query, key, value, mask, **options)
        guard = self.guard
        edits = [(number, edit) for number, edit in enumerate(self.of(AttentionEdit)) if self.edits(edit, layer)]
        is_tapped = (layer in self.tapped or layer == self.stop) and not guard.answering
        if not edits and not is_tapped:
            out, weights = base(module, query, key, value, mask, **options)
            return self._heads(layer, out), weights
        known(options)
        attending = self._attending(layer, query, key, mask, options)
        if is_tapped:
            guard.taps[layer] = attending.prompt()
            if layer == self.stop:
                raise Enough(guard.taps[layer])
        for number, edit in edits:
            self._note(layer, number, edit, attending)
        bias = self._bias(layer, [edit for _, edit in edits], attending)
        if bias is not None:
            mask = as_kernel_reads(attending.allowed, self.kernel, query.dtype, bias)
        weights = None

        def kernel(told: Attending, values: Tensor) -> Tensor:
            read = as_kernel_reads(told.allowed, self.kernel, query.dtype, bias)
            return base(module, told.query, told.key, values, read, **{**options, "scaling": told.scaling})[0]

        functions = [(number, edit) for number, edit in edits if isinstance(edit, AttentionFunction)]
        if functions:
            number, function = functions[0]
            marks = _fitted(guard.marks.get((layer, number)), attending.key.shape[2])
            out = function.attend(kernel, attending._replace(marks=marks, learns=self.training), value, layer)
        else:
            out, weights = base(module, query, key, value, mask, **options)
        for number, edit in edits:
            marks = guard.marks.get((layer, number))
            out = _difference(edit, out, attending, value, bias, marks, self._seen(edit, attending.keys), layer)
        return self._heads(layer, out), weights

    def _attending(self, layer: int, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> Attending:
        queries, keys = self.guard.fresh[layer], self.guard.seen[layer].fitted(key.shape[2])
        if mask is None:
            allowed = (keys.present[:, None] & (queries.place[:, :, None] >= keys.place[:, None]))[:, None]
        else:
            allowed = as_bools(mask, (len(query), 1, query.shape[2], key.shape[2]))[..., : key.shape[2]]
        allowed = allowed.expand(len(query), -1, -1, -1)
        tables = self.tables if isinstance(self.tables, tuple) and len(self.tables) == 2 else None
        if tables is not None and tables[0].ndim != 3:
            tables = None
        return Attending(query, key, allowed, queries, keys, options["scaling"], options.get("softcap"), tables)

    def _note(self, layer: int, number: int, edit: AttentionEdit, attending: Attending) -> None:
        """Remember what an edit measures of a prompt; what is answered counts as 0."""
        guard = self.guard
        if guard.answering:
            if (layer, number) in guard.measured:
                count = attending.queries.kind.shape[1]
                guard.marks[layer, number] = longer(guard.marks[layer, number], count)
            return
        found = edit.measure(attending.prompt(), layer)
        if found is not None:
            guard.marks[layer, number] = found.detach()
            guard.measured.add((layer, number))

    def _bias(self, layer: int, edits: list[AttentionEdit], attending: Attending) -> Tensor | None:
        total: Tensor | None = None
        for edit in edits:
            lacks = bool(self.guard.prompt.visual.any()) and not bool(self.guard.seen[layer].visual.any())
            if edit.needs_image and lacks:
                raise ValueError(f"{type(edit).__name__} needs image tokens, and layer {layer} has none left")
            if isinstance(edit, LogitEdit) and not isinstance(edit, AttentionFunction):
                bias = edit.bias(attending)
                total = bias if total is None else total + bias
        return None if total is None else total.expand(-1, -1, *attending.allowed.shape[2:])

    def _seen(self, edit: AttentionEdit, keys: TokenMap) -> Tensor | None:
        scores = None if edit.tower_layer is None else self.guard.vision.get(edit.tower_layer)
        if scores is None:
            return None
        return scores.gather(1, keys.place.clamp(max=scores.shape[1] - 1)).masked_fill(~keys.visual, 0.0)

    def _heads(self, layer: int, out: Tensor) -> Tensor:
        """What heads answer (B, Q, h, d), after all edits."""
        guard, queries = self.guard, self.guard.fresh[layer]
        sample = torch.arange(len(out), device=out.device)
        if self.recorded is not None:
            self.recorded[layer] = out[sample, queries.last].detach()
        for number, edit in enumerate(self.of(HeadEdit)):
            if not edit.at(layer, self.depth):
                continue
            out = edit.edit(out, layer, queries)
            if isinstance(edit, ComparedHeadEdit) and self.recorded is None:
                if not guard.answering:
                    last, others = out[sample, queries.last], self.others[layer]
                    guard.factors[layer, number] = edit.scales(last.detach().float(), others.float()).to(out)
                factor = torch.where(speaking(queries)[..., None], guard.factors[layer, number][:, None], 1.0)
                out = out * factor[..., None]
        return out


def _difference(
    edit: AttentionEdit,
    out: Tensor,
    attending: Attending,
    value: Tensor,
    bias: Tensor | None,
    marks: Tensor | None,
    seen: Tensor | None,
    layer: int,
) -> Tensor:
    """Outputs (B, Q, h, d) with what changed weights add to them at the queries that an edit asks for."""
    asked = edit.rows(attending.queries)
    if not len(asked):
        return out
    part, width = attending.within(asked), attending.key.shape[2]
    logits = part.logits() if bias is None else part.logits() + bias[:, :, asked]
    marks = _fitted(marks, width)
    old = masked_softmax(logits, part.allowed)
    rows = Rows(old, logits, part.allowed, part.queries, attending.keys, layer, marks, seen)
    extra = (edit.weights(rows) - old).to(value) @ value.repeat_interleave(
        attending.query.shape[1] // value.shape[1], 1
    )
    return out.index_add(1, asked, extra.transpose(1, 2))


def _fitted(marks: Tensor | None, width: int) -> Tensor | None:
    """Marks of as many keys as there are."""
    return None if marks is None else longer(marks, max(width - marks.shape[1], 0))[:, -width:]


def longer(marks: Tensor, count: int) -> Tensor:
    """Marks (B, T, ...) with zeros for more tokens."""
    return torch.cat([marks, marks.new_zeros(len(marks), count, *marks.shape[2:])], 1)
