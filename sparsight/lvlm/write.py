"""What a model writes after prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from sparsight.sharding import is_sharded


@torch.no_grad()
def write_answers(model: Any, tokenizer: Any, inputs: Mapping[str, Any], *, new_tokens: int) -> list[str]:
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
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@contextmanager
def _greedy(model: Any, tokenizer: Any) -> Iterator[None]:
    """Without the model's own settings, which fill in whatever a call of ``generate`` leaves open."""
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
