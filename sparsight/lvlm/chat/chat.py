"""Conversations as tokens: the model's own processor and chat template, with exact answer spans.

An answer's span begins where the template's generation cue ends, or behind the thought that the template writes there,
and closes with the token that ends the turn: it is what the model has to produce when it is asked. Spans are found in
the rendered text, carried over the places where the processor puts many tokens for one image, and mapped to tokens by
the tokenizer's offsets. What the spans hold is then compared with the answers, so a sample is either right or refused,
never silently masked.

Shape legend: T tokens of one sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from sparsight.lvlm.chat.chat_template import UnusableConversation
from sparsight.lvlm.chat.chat_text import ChatText, Reasoning
from sparsight.lvlm.chat.conversation import IMAGE, Conversation, Turn
from sparsight.lvlm.chat.thoughts import opens_thought
from sparsight.lvlm.model.answer_losses import IGNORED

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # one number for every token


@dataclass(frozen=True)
class EncodedChat:
    """A conversation to be trained on.

    Args:
        inputs: Arguments of the model's forward pass for this sample alone: ``input_ids`` (1, T), pixels ...
        labels_T: Token ids of answers and their end tokens, ``IGNORED`` elsewhere.
        cut: Tokens left out at the end because of ``max_length``.
    """

    inputs: dict[str, Tensor]
    labels_T: Tensor
    cut: int


@dataclass(frozen=True)
class EncodedQuestion:
    """A conversation up to its last answer, and the answers to choose from.

    Args:
        inputs: Arguments of the model's forward pass for the prompt alone, which ends with the generation cue.
        continuations: Token ids of every candidate, with the end token.
    """

    inputs: dict[str, Tensor]
    continuations: list[list[int]]


@dataclass(frozen=True)
class _Tokens:
    inputs: dict[str, Tensor]
    offsets: list[tuple[int, int]]  # of every token, in the text in which images are expanded
    text: str  # that text
    gains: list[tuple[int, int]]  # for every image, where its place ended in the rendered text, and what it gained
    image_end: int  # tokens up to and with the last one that stands for an image

    def span(self, start: int, end: int) -> tuple[int, int]:
        """First token, and token behind the last one, of characters of the rendered text."""
        start, end = (place + sum(gain for at, gain in self.gains if at <= place) for place in (start, end))
        # where tokens end decides: one of white space may have an empty range
        first = next(number for number, (_, stop) in enumerate(self.offsets) if stop > start)
        return first, _token_behind(self.offsets, end)


@runtime_checkable
class OfImagesAndTexts(Protocol):
    """A processor of both."""

    tokenizer: Any
    image_processor: Any


class ChatFormat:
    """What a conversation is for one model.

    Args:
        processor: With tokenizer, image processor and chat template.
        options: Variables of the template, such as ``enable_thinking``.
        reasoning: What happens to thoughts of answers; see ``ChatText``.

    Attributes:
        text: How the model writes conversations.

    Raises:
        ValueError: The processor or its template cannot serve.
    """

    def __init__(
        self, processor: Any, *, options: Mapping[str, Any] | None = None, reasoning: Reasoning = "show"
    ) -> None:
        name = type(processor).__name__
        self.processor = processor
        complete = isinstance(processor, OfImagesAndTexts) and processor.image_processor is not None
        if not complete or processor.tokenizer is None:
            raise ValueError(f"{name} is no processor of texts and images; give the folder of an image-text model")
        self.tokenizer: Any = processor.tokenizer
        if not self.tokenizer.is_fast:
            raise ValueError(f"the tokenizer {type(self.tokenizer).__name__} gives no offsets; use its fast version")
        if "labels" in processor.model_input_names:
            raise ValueError(f"{name} marks answers by its own prefix rule and has no chat: it is not supported")
        self.text = ChatText(processor, options=options, reasoning=reasoning)

    @cached_property
    def images_in_rows(self) -> bool:
        """Whether pixels lie as (samples, images, ...) and not as (images, ...)."""
        images = (Image.new("RGB", (32, 32)),) * 2
        text = self.text.render((Turn("user", f"{IMAGE}{IMAGE}Same?"),))
        return len(self._tokenise(text, images).inputs["pixel_values"]) == 1

    @property
    def pad_id(self) -> int:
        """Token that fills rows up."""
        tokenizer = self.tokenizer
        return int((tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id) or 0)

    def encode(self, conversation: Conversation, *, max_length: int | None = None) -> EncodedChat:
        """Tokens of a conversation up to its last answer, and which of them carry the loss.

        Args:
            conversation: The conversation.
            max_length: Most tokens; what is longer loses the end of its text.

        Raises:
            UnusableConversation: Template or processor refuse it, an answer cannot be found again, or ``max_length``
                would cut image tokens or leave nothing of the answers.
        """
        question, answer = conversation.question_and_answer
        text, spans = self.text.spans((*question, answer))
        tokens = self._tokenise(text, conversation.images)
        ids_T = tokens.inputs["input_ids"][0]
        labels_T = torch.full_like(ids_T, IGNORED)
        for span in spans:
            first, stop = tokens.span(span.start, span.stop)
            self._verify(ids_T[first:stop].tolist(), span.said)
            labels_T[first:stop] = ids_T[first:stop]
        kept = min(len(ids_T), max_length or len(ids_T))
        if tokens.image_end > kept:
            raise UnusableConversation(f"its images reach to token {tokens.image_end}, beyond max_length={max_length}")
        if (labels_T[:kept] == IGNORED).all():
            raise UnusableConversation(f"of {len(ids_T)} tokens, max_length={max_length} leaves none of the answers")
        return EncodedChat(_first_tokens(tokens.inputs, kept), labels_T[:kept], cut=len(ids_T) - kept)

    def encode_question(self, conversation: Conversation, *, max_length: int | None = None) -> EncodedQuestion:
        """Prompt up to the last answer, and every candidate for it (the answer alone where there are none).

        Prompt and candidate are tokenised together. Where a candidate's beginning merges with the prompt's end into one
        token, the prompt ends before that token for all candidates, so all are continuations of one prompt.

        Raises:
            UnusableConversation: As for ``encode``, or prompt and candidate do not fit into ``max_length``.
        """
        question, answer = conversation.question_and_answer
        candidates = conversation.candidates or (answer.text,)
        written = [self.text.spans((*question, Turn("assistant", candidate))) for candidate in candidates]
        prompt = written[0][0][: written[0][1][-1].start]  # with an empty thought, if the template writes one
        tokens = self._tokenise(prompt, conversation.images)
        texts = [tokens.text, *(tokens.text + text[spans[-1].start : spans[-1].stop] for text, spans in written)]
        encoded = self.tokenizer(texts, add_special_tokens=self._adds_special(prompt), return_offsets_mapping=True)
        ids = encoded["input_ids"][0]
        if ids != tokens.inputs["input_ids"][0].tolist():
            raise UnusableConversation("the processor changes texts otherwise than by putting in images")
        rest = zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
        # some tokenizers put a token of their own behind every text
        whole = [other[: _token_behind(offsets, len(text))] for other, offsets, text in list(rest)[1:]]
        border = min(_common(ids, other) for other in whole)
        for other, candidate in zip(whole, candidates, strict=True):
            self._verify(other[border:], candidate, merged=border < len(ids))
        longest = max(map(len, whole))
        if max_length is not None and longest > max_length:
            raise UnusableConversation(f"prompt and candidate have {longest} tokens, more than max_length={max_length}")
        return EncodedQuestion(_first_tokens(tokens.inputs, border), [other[border:] for other in whole])

    def encode_prompt(
        self, turns: Sequence[Turn], images: Sequence[Image.Image] = (), *, begun: str = ""
    ) -> dict[str, Tensor]:
        """Arguments of the model's forward pass for a conversation that the model is to go on with.

        Args:
            turns: What was said; the assistant is next.
            images: Images in the order of their ``<image>``.
            begun: First words of its answer; left out where the cue has the model think first.

        Raises:
            UnusableConversation: Template or processor refuse it.
        """
        prompt = self.text.render(turns, cue=True)
        if begun and not opens_thought(prompt):
            text, spans = self.text.spans((*turns, Turn("assistant", begun)))
            prompt = text[: text.index(begun, spans[-1].start) + len(begun)]
        return self._tokenise(prompt, images).inputs

    def mark(self, ids: Sequence[int], labels: Sequence[int]) -> str:
        """Tokens as text, with ``[[`` and ``]]`` around those that carry the loss, and repeated tokens counted."""
        return "".join(f"[[{text}]]" if learnt else text for text, learnt in self.spans(ids, labels))

    def spans(self, ids: Sequence[int], labels: Sequence[int]) -> list[tuple[str, bool]]:
        """Tokens as text, repeated ones counted, in parts that carry the loss or do not."""
        parts, start = [], 0
        for place in range(1, len(ids) + 1):
            if place == len(ids) or (labels[place] == IGNORED) != (labels[start] == IGNORED):
                text = self._decode(ids[start:place])
                counted = re.sub(r"(<[^<>\s]+>)\1+", lambda m: f"{m[1]}(x{len(m[0]) // len(m[1])})", text)
                parts.append((counted, labels[start] != IGNORED))
                start = place
        return parts

    def _tokenise(self, text: str, images: Sequence[Image.Image]) -> _Tokens:
        if text.count(self.processor.image_token) != len(images):
            raise UnusableConversation(f"a text holds {self.processor.image_token!r}, which stands for an image")
        try:
            found = self.processor(
                text=[text],
                images=[list(images)] if images else None,
                text_kwargs={"return_offsets_mapping": True, "add_special_tokens": self._adds_special(text)},
                images_kwargs={"return_tensors": "pt"},
                return_text_replacement_offsets=True,
            )
        except Exception as error:  # of the image processor, say: images come in all shapes
            raise UnusableConversation(f"the processor refuses it: {type(error).__name__}: {error}") from error
        (offsets,) = found.pop("offset_mapping")
        places = (found.pop("text_replacement_offsets", None) or [[]])[0]
        if len(places) != len(images):
            raise UnusableConversation(
                "the processor does not tell where images are; transformers' own do from 5.15 on"
            )
        expanded, done = "", 0
        for place in places:
            expanded += text[done : place["span"][0]] + place["replacement"]
            done = place["span"][1]
        gains = [(p["span"][1], len(p["replacement"]) - (p["span"][1] - p["span"][0])) for p in places]
        image_end = _token_behind(offsets, places[-1]["new_span"][1]) if places else 0
        inputs = {name: torch.as_tensor(value) for name, value in found.items()}
        return _Tokens(inputs, offsets, expanded + text[done:], gains, image_end)

    def _adds_special(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _verify(self, ids: Sequence[int], said: str, *, merged: bool = False) -> None:
        """See that tokens read as an answer and its end token, apart from white space (and a merged beginning)."""
        if self.tokenizer.unk_token_id in ids[:-1]:  # some tokenizers end texts by the same token
            raise UnusableConversation(f"answer {said[:40]!r} holds what the tokenizer does not know")
        alone = self.tokenizer(said.strip() + self.text.end, add_special_tokens=False)["input_ids"]
        wanted, got = ("".join(self._decode(part).split()) for part in (alone, ids))
        if not (got.endswith(wanted) if merged else got == wanted):
            raise UnusableConversation(f"the tokens of answer {said[:40]!r} read {self._decode(ids)[:60]!r}")


def _first_tokens(inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: value[:, :count] if name in TOKEN_INPUTS else value for name, value in inputs.items()}


def _token_behind(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """Number of tokens up to and with the one that holds the character before ``end``."""
    return next(number for number, (_, stop) in enumerate(offsets, start=1) if stop >= end)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two sequences."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
