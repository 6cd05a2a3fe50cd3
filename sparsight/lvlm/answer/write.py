"""What a model writes after prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from sparsight.common.training.sharding import is_sharded
from sparsight.lvlm.chat.thoughts import MARKS, Thought, opens_thought, split_thought

_TAIL = 32  # tokens of a prompt in which a mark that opens a thought, and white space behind it, have room


class Written(NamedTuple):
    """What a model wrote.

    Args:
        text: Without special tokens, but with marks of thoughts.
        opened: Whether the prompt ended with a mark that opens a thought.
    """

    text: str
    opened: bool

    def parts(self) -> Thought:
        """Thought and answer."""
        return split_thought(self.text, opened=self.opened)


@torch.no_grad()
def write_answers(model: Any, tokenizer: Any, inputs: Mapping[str, Any], *, new_tokens: int) -> list[Written]:
    """The likeliest continuation, token by token, of every prompt of a batch.

    It ends with a token that the model's generation settings or its tokenizer call the end. The other settings that
    come with a model (sampling, beams, penalties of repeated or short texts) are not used.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        inputs: Keyword arguments of its forward pass, padded on the left.
        new_tokens: Most tokens to write.
    """
    with _greedy(model, tokenizer):
        # processes that share a split model write on until all are done
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, synced_gpus=is_sharded(model))
    prompts = inputs["input_ids"]
    dropped = _dropped(tokenizer)
    return [
        Written(
            _decoded(tokenizer, said.tolist(), dropped),
            opens_thought(_decoded(tokenizer, prompt[-_TAIL:].tolist(), dropped)),
        )
        for prompt, said in zip(prompts, tokens[:, prompts.shape[1] :], strict=True)
    ]


def _dropped(tokenizer: Any) -> set[int]:
    """Special tokens that are no text; some tokenizers count marks of thoughts among them."""
    marks = {mark for pair in MARKS for mark in pair}
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {number for token, number in special if token not in marks}


def _decoded(tokenizer: Any, ids: list[int], dropped: set[int]) -> str:
    return str(tokenizer.decode([number for number in ids if number not in dropped], skip_special_tokens=False))


@contextmanager
def _greedy(model: Any, tokenizer: Any) -> Iterator[None]:
    """Without the model's own settings, which fill in whatever a call of ``generate`` leaves open."""
    from transformers import GenerationConfig

    own = model.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None}) or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=own.bos_token_id,
    )
    try:
        yield
    finally:
        model.generation_config = own
