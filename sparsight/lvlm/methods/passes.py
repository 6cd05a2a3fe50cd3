"""The passes of a model under a recipe: its own, those of branches with caches of theirs, and those that go before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from blocks.edits.base import BranchDecoder, ComparedHeadEdit, HeadEdit
from blocks.tokens.attending import Attending
from blocks.tokens.base import Edit, FeatureReducer
from sparsight.lvlm.methods.attention import Enough
from sparsight.lvlm.methods.guard import CacheGuard, GuardedCache, guarded
from sparsight.lvlm.methods.spans import present_tokens
from sparsight.lvlm.methods.state import Prompt, State
from sparsight.lvlm.model.answer_losses import IGNORED, labels_now

PIXELS = ("pixel_values", "mm_encoder_outputs")
VIDEOS = ("pixel_values_videos", "video_grid_thw")
Forward = Callable[..., Any]


class Passes(State):
    """Methods around the whole model."""

    def model(self, forward: Forward, *args: Any, **inputs: Any) -> Any:
        """A prompt gets a guard, which stays with its cache; an answer finds it there.

        Raises:
            ValueError: The inputs are no prompt from its beginning, and do not go on from one that was read here.
        """
        if args:
            raise ValueError("inputs of a model under a recipe must be named")
        held = inputs.get("past_key_values")
        guard, prompt, branches = None, None, self.of(BranchDecoder)
        if isinstance(held, GuardedCache):
            guard = _going_on(held.guard, inputs)
            seconds = guard.branches
        else:
            prompt = _begun(held, inputs)
            seconds = [copy.deepcopy(held) for _ in branches]
        try:
            if prompt is not None:
                self._compare(forward, inputs, prompt)
            answer, guard = self._pass(forward, inputs, guard, prompt)
            for number, branch in enumerate(branches):
                logits_of = branch.passes() if self.training else "both"
                if logits_of == "first":
                    continue
                second = {**inputs, "past_key_values": seconds[number]}
                with self._only(self._of_branch(branch)):
                    other, _ = self._pass(forward, second, _guard_of(seconds[number]), prompt)
                seconds[number] = other.past_key_values
                both = logits_of == "both"
                answer.logits = branch.combine(answer.logits, other.logits) if both else other.logits
        finally:
            self.pictures.forget()
            self.others = {}
        guard.branches = seconds
        if branches and inputs.get("labels") is not None:
            answer.loss = _loss(answer.logits, inputs["labels"])
        return answer

    def _pass(
        self, forward: Forward, inputs: dict[str, Any], guard: CacheGuard | None, prompt: Prompt | None
    ) -> tuple[Any, CacheGuard]:
        self._guard, self._prompt = guard, prompt
        try:
            answer = forward(**inputs)
            guard = self.guard
        finally:
            self._guard = self._prompt = None
        guard.answering = True
        if answer.past_key_values is not None:
            guarded(answer.past_key_values, guard)
        self.pictures.again = True
        return answer, guard

    def _of_branch(self, branch: BranchDecoder) -> list[Edit]:
        """Methods of a second pass."""
        reducer = self.second[branch]
        dropped: tuple[type, ...] = (BranchDecoder,) if reducer is None else (BranchDecoder, FeatureReducer)
        others = [method for method in self.methods if not isinstance(method, dropped)]
        return others if reducer is None else [reducer, *others]

    def _compare(self, forward: Forward, inputs: dict[str, Any], prompt: Prompt) -> None:
        """Record what heads answer in a pass that goes before."""
        for reducer in list(self.first.values())[:1]:
            kept = [m for m in self.methods if not isinstance(m, (FeatureReducer, BranchDecoder, ComparedHeadEdit))]
            self.recorded = {}
            try:
                with self._only([reducer, *kept]):
                    self._pass(forward, {**inputs, "past_key_values": None, "use_cache": False}, None, prompt)
                self.others = self.recorded
            finally:
                self.recorded = None

    @contextmanager
    def _only(self, methods: list[Edit]) -> Iterator[None]:
        before, self.methods = self.methods, methods
        try:
            yield
        finally:
            self.methods = before

    def asked(self, forward: Forward, inputs: dict[str, Any], guard: CacheGuard, layer: int) -> Attending:
        """What a layer attends with, in a pass of the decoder that ends there and leaves nothing."""
        self._guard = CacheGuard(guard.prompt, self.config, guard.seeds)
        self._guard.deep = guard.deep
        self.stop = layer
        try:
            with self._only([method for method in self.methods if not isinstance(method, (FeatureReducer, HeadEdit))]):
                forward(**{**inputs, "past_key_values": None, "use_cache": False})
        except Enough as found:
            return found.attending
        finally:
            self.stop, self._guard = None, guard
        raise ValueError(f"layer {layer} of the decoder has no attention that can be asked")


def _guard_of(held: Any) -> CacheGuard | None:
    return held.guard if isinstance(held, GuardedCache) else None


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)


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


def _begun(held: Any, inputs: dict[str, Any]) -> Prompt:
    """What is known of a prompt before its images are encoded."""
    ids = inputs.get("input_ids")
    if ids is None or (held is not None and held.get_seq_length() > 0):
        raise ValueError("under a recipe a prompt is read from its beginning, as input_ids")
    if any(inputs.get(name) is not None for name in VIDEOS):
        raise ValueError("recipes do not serve videos: give their frames as images")
    positions = inputs.get("position_ids")
    if positions is not None and inputs.get("attention_mask") is None and bool((positions.diff() < 0).any()):
        raise ValueError("recipes do not serve packed rows: set data.batching.packing to false")
    labels = inputs.get("labels")
    shows = any(inputs.get(name) is not None for name in PIXELS)
    return Prompt(
        ids, present_tokens(inputs.get("attention_mask"), ids), labels_now() if labels is None else labels, shows
    )
